/* A provider that costs next to nothing: one epoll loop, HTTP/1.1 keep-alive, canned OpenAI answers.
 *
 *   upstream PORT CHUNKS INTERVAL_MS
 *
 * A request whose body has "stream":true gets CHUNKS events of about 220 bytes, one every INTERVAL_MS (the first at
 * once), then a usage event and [DONE], in chunked coding. Any other request gets an 889-byte chat completion with usage.
 * Listens on 127.0.0.1 only; prints "ready" when it does. Ends when its standard input closes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REQUEST_MAX 65536
#define ANSWER_BYTES 889
#define EVENTS 512

typedef struct conn {
    int fd;
    int length;            /* bytes of an incomplete request */
    int chunks_left;       /* 0: no stream running; the last one is the usage event with [DONE] */
    uint64_t due_us;
    struct conn *next_due; /* streams wait in one list: equal intervals keep it in order */
    int waiting, closed;
    char buffer[REQUEST_MAX];
} conn;

static char answer[4096], event[2048], last_event[4096], stream_head[256];
static int answer_length, event_length, last_length, head_length;
static int chunks_total = 20;
static uint64_t interval_us = 50000;
static conn *due_first, *due_last;
static int epoll_fd;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int framed(char *out, const char *payload) {
    return sprintf(out, "%zx\r\n%s\r\n", strlen(payload), payload);
}

static void build(void) {
    static char body[2048], text[1024], payload[1024];
    const char *shape =
        "{\"id\":\"chatcmpl-benchmark0000000000000000000\",\"object\":\"chat.completion\",\"created\":1767225600,"
        "\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\","
        "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":180,"
        "\"completion_tokens\":96,\"total_tokens\":276,\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},"
        "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0}},\"service_tier\":\"default\"}";
    int padding = ANSWER_BYTES - (int)(strlen(shape) - 2);
    for (int i = 0; i < padding; i++) text[i] = i % 6 == 5 ? ' ' : 'a' + i % 26;
    int length = sprintf(body, shape, text);
    answer_length = sprintf(answer,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_benchmark\r\n"
        "content-length: %d\r\n\r\n%s", length, body);
    head_length = sprintf(stream_head,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-request-id: req_benchmark\r\n"
        "transfer-encoding: chunked\r\n\r\n");
    const char *head = "\"id\":\"chatcmpl-benchmark0000000000000000000\",\"object\":\"chat.completion.chunk\","
        "\"created\":1767225600,\"model\":\"gpt-4o-mini\"";
    sprintf(payload, "data: {%s,\"choices\":[{\"index\":0,\"delta\":{\"content\":\" benchmark\"},\"logprobs\":null,"
        "\"finish_reason\":null}]}\n\n", head);
    event_length = framed(event, payload);
    sprintf(payload, "data: {%s,\"choices\":[],\"usage\":{\"prompt_tokens\":180,\"completion_tokens\":%d,"
        "\"total_tokens\":%d}}\n\ndata: [DONE]\n\n", head, chunks_total, 180 + chunks_total);
    last_length = framed(last_event, payload);
    last_length += sprintf(last_event + last_length, "0\r\n\r\n");
}

static void enqueue(conn *c) {
    c->next_due = NULL;
    c->waiting = 1;
    if (due_last) due_last->next_due = c; else due_first = c;
    due_last = c;
}

static void drop(conn *c) {
    if (c->closed) return;
    close(c->fd);
    c->closed = 1;
    if (!c->waiting) free(c); /* else when its turn comes */
}

/* Small writes to a keep-alive connection that is read at once: a full socket buffer means that the reader is gone. */
static int send_all(conn *c, const char *bytes, int length) {
    return send(c->fd, bytes, length, MSG_NOSIGNAL) == length;
}

static int send_event(conn *c) {
    int last = --c->chunks_left == 0;
    return send_all(c, last ? last_event : event, last ? last_length : event_length);
}

/* One complete request of `length` bytes. */
static int respond(conn *c, const char *request, int length) {
    if (!memmem(request, length, "\"stream\":true", 13) && !memmem(request, length, "\"stream\": true", 14))
        return send_all(c, answer, answer_length);
    c->chunks_left = chunks_total + 1;
    char first[sizeof stream_head + sizeof event];
    memcpy(first, stream_head, head_length);
    memcpy(first + head_length, event, event_length);
    c->chunks_left--;
    if (!send_all(c, first, head_length + event_length)) return 0;
    c->due_us = now_us() + interval_us;
    if (!c->waiting) enqueue(c);
    return 1;
}

/* The whole request's length; 0 while incomplete; -1 when it is not one of ours. */
static int request_length(const char *buffer, int length) {
    const char *end = memmem(buffer, length, "\r\n\r\n", 4);
    if (!end) return length < REQUEST_MAX ? 0 : -1;
    int head = (int)(end - buffer) + 4, body = 0;
    for (const char *line = buffer; line < end;) {
        const char *next = memmem(line, end + 2 - line, "\r\n", 2);
        if (!strncasecmp(line, "content-length:", 15)) body = atoi(line + 15);
        if (!strncasecmp(line, "transfer-encoding:", 18)) {
            const char *stop = memmem(buffer + head, length - head, "0\r\n\r\n", 5);
            return stop ? (int)(stop - buffer) + 5 : 0;
        }
        line = next ? next + 2 : end;
    }
    if (head + body > REQUEST_MAX) return -1;
    return length >= head + body ? head + body : 0;
}

static void readable(conn *c) {
    for (;;) {
        ssize_t got = recv(c->fd, c->buffer + c->length, REQUEST_MAX - c->length, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) { drop(c); return; }
        c->length += got;
        int used;
        while ((used = request_length(c->buffer, c->length)) > 0) {
            if (!respond(c, c->buffer, used)) { drop(c); return; }
            memmove(c->buffer, c->buffer + used, c->length - used);
            c->length -= used;
            if (c->length == 0) break;
        }
        if (used < 0) { drop(c); return; }
        if (got < 4096) return; /* level-triggered: the rest comes round again */
    }
}

static int run_due(void) {
    uint64_t now = now_us();
    while (due_first && (due_first->closed || due_first->due_us <= now)) {
        conn *c = due_first;
        due_first = c->next_due;
        if (!due_first) due_last = NULL;
        c->waiting = 0;
        if (c->closed) { free(c); continue; }
        if (c->chunks_left == 0) continue;
        if (!send_event(c)) { drop(c); continue; }
        c->due_us += interval_us;
        if (c->chunks_left > 0) enqueue(c);
    }
    if (!due_first) return -1;
    return due_first->due_us > now ? (int)((due_first->due_us - now + 999) / 1000) : 0;
}

int main(int count, char **arguments) {
    if (count != 4) { fprintf(stderr, "usage: upstream PORT CHUNKS INTERVAL_MS\n"); return 2; }
    chunks_total = atoi(arguments[2]);
    interval_us = strtoull(arguments[3], NULL, 10) * 1000;
    build();
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) { perror("upstream"); return 1; }
    epoll_fd = epoll_create1(0);
    struct epoll_event watch = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &watch);
    static int stdin_mark;
    watch.data.ptr = &stdin_mark;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &watch);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, EVENTS, run_due());
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr == &stdin_mark) {
                char ignored[64];
                if (read(0, ignored, sizeof ignored) <= 0) return 0;
            } else if (events[i].data.ptr) {
                readable(events[i].data.ptr);
            } else {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conn *c = calloc(1, sizeof *c);
                    c->fd = fd;
                    watch.data.ptr = c;
                    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &watch);
                }
            }
        }
    }
}
