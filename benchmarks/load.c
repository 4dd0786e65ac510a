/* A load generator that does not flatter: closed loop for capacity, open loop for latency, and held streams.
 *
 *   load MODE PORT REQUEST_FILE CONNECTIONS WARMUP_S WINDOW_S [RATE]
 *
 *   closed    every connection sends its next request when it has the answer
 *   open      RATE requests a second at fixed times on CONNECTIONS connections; a request that finds none free waits,
 *             and its latency counts from its planned time (no coordinated omission)
 *   each      as closed, but every request is another one: REQUEST_FILE holds many, each after a line with its length in bytes;
 *             it ends with an error when they run out
 *   streams   every connection holds a stream and asks again when it ends; connections open evenly over the first second
 *
 * Only what completes inside the window counts. Prints three lines, so that the caller can read CPU counters at the edges:
 * "window", "end", and one JSON object: requests, chunks, errors, seconds, latency percentiles (for streams: time to the
 * first event) in microseconds. REQUEST_FILE holds a whole request, head and body. Talks to 127.0.0.1 only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 1024
#define HEAD_MAX 16384
#define SAMPLES_MAX 20000000

enum state { IDLE, HEAD, SIZED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

typedef struct {
    int fd;
    enum state state;
    uint64_t started_us; /* when the request was, or should have been, sent */
    int64_t body_left;
    int head_length, first_seen, matched, line_length;
    char head[HEAD_MAX];
} conn;

static struct sockaddr_in address;
static char *request;
static int request_length, epoll_fd, connections, streams_mode;
static conn *all;
static conn **idle;
static int idle_count;
static uint64_t *planned; /* ring of requests that wait for a connection */
static int planned_first, planned_count, planned_size = 1 << 20;
static uint32_t *samples;
static uint64_t sample_count, requests, chunks, errors, all_errors;
static int in_window, last_status, open_mode;
static char **each; /* the requests of `each` */
static int *each_lengths, each_count, each_next;
static uint64_t answered;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void sample(uint64_t us) {
    if (in_window && sample_count < SAMPLES_MAX) samples[sample_count++] = us > 0xffffffffu ? 0xffffffffu : us;
}

static void open_connection(conn *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (void *)&address, sizeof address)) { perror("load: connect"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event watch = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &watch);
    c->state = IDLE;
}

static void broken(conn *c) {
    errors += in_window;
    all_errors++;
    close(c->fd);
    open_connection(c);
}

static void send_request(conn *c, uint64_t started_us) {
    c->started_us = started_us;
    c->state = HEAD;
    c->head_length = c->first_seen = c->matched = 0;
    char *bytes = request;
    int length = request_length;
    if (each) {
        if (each_next == each_count) { fprintf(stderr, "load: all %d requests are used\n", each_count); exit(1); }
        bytes = each[each_next];
        length = each_lengths[each_next++];
    }
    if (send(c->fd, bytes, length, MSG_NOSIGNAL) != length) {
        broken(c);
        c->state = IDLE;
    }
}

static void next_request(conn *c) {
    if (!open_mode) {
        for (int tries = 0; c->state == IDLE && tries < 3; tries++) send_request(c, now_us());
    } else if (planned_count) {
        uint64_t at = planned[planned_first];
        planned_first = (planned_first + 1) % planned_size;
        planned_count--;
        send_request(c, at);
    } else {
        idle[idle_count++] = c;
    }
}

static void finished(conn *c) {
    if (last_status != 200) {
        errors += in_window;
        all_errors++;
    } else if (answered++, in_window) {
        requests++;
        if (!streams_mode) sample(now_us() - c->started_us);
    }
    c->state = IDLE;
    next_request(c);
}

/* Count "data: " in body bytes, across reads. */
static void count_events(conn *c, const char *bytes, int64_t length) {
    static const char mark[] = "data: ";
    for (int64_t i = 0; i < length; i++) {
        c->matched = bytes[i] == mark[c->matched] ? c->matched + 1 : bytes[i] == mark[0];
        if (c->matched < 6) continue;
        c->matched = 0;
        chunks += in_window;
        if (!c->first_seen) {
            c->first_seen = 1;
            sample(now_us() - c->started_us);
        }
    }
}

/* The head is complete: where does the body end? */
static void read_head(conn *c) {
    c->head[c->head_length] = 0;
    last_status = atoi(c->head + 9);
    c->body_left = 0;
    c->state = SIZED;
    for (char *line = strstr(c->head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, "content-length:", 15)) c->body_left = atoll(line + 17);
        if (!strncasecmp(line + 2, "transfer-encoding:", 18)) c->state = CHUNK_SIZE;
    }
    c->line_length = 0;
}

static void readable(conn *c) {
    static char buffer[262144];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        int was_idle = c->state == IDLE;
        broken(c);
        if (!was_idle) next_request(c); /* an idle one is in the list of idle ones already */
        return;
    }
    for (ssize_t at = 0; at < got;) {
        switch (c->state) {
        case IDLE:
            at = got; /* bytes nobody asked for */
            break;
        case HEAD:
            c->head[c->head_length++] = buffer[at++];
            if (c->head_length == HEAD_MAX - 1) { fprintf(stderr, "load: response head too long\n"); exit(1); }
            if (c->head_length >= 4 && !memcmp(c->head + c->head_length - 4, "\r\n\r\n", 4)) {
                read_head(c);
                if (c->state == SIZED && c->body_left == 0) finished(c);
            }
            break;
        case SIZED:
        case CHUNK_DATA: {
            int64_t take = c->body_left < got - at ? c->body_left : got - at;
            if (streams_mode) count_events(c, buffer + at, take);
            at += take;
            c->body_left -= take;
            if (c->body_left == 0) {
                if (c->state == SIZED) finished(c);
                else c->state = CHUNK_END;
            }
            break;
        }
        case CHUNK_SIZE: {
            char byte = buffer[at++];
            if (byte == '\n') {
                c->head[c->line_length] = 0;
                c->body_left = strtoll(c->head, NULL, 16);
                c->line_length = 0;
                c->state = c->body_left ? CHUNK_DATA : TRAILER;
            } else if (c->line_length < 32) {
                c->head[c->line_length++] = byte;
            }
            break;
        }
        case CHUNK_END:
            if (buffer[at++] == '\n') c->state = CHUNK_SIZE;
            break;
        case TRAILER: {
            char byte = buffer[at++];
            if (byte == '\n') {
                int empty = c->line_length == 0;
                c->line_length = 0;
                if (empty) finished(c);
            } else if (byte != '\r') {
                c->line_length++;
            }
            break;
        }
        }
    }
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t percentile(double fraction) {
    return sample_count ? samples[(uint64_t)(fraction * (sample_count - 1) + 0.5)] : 0;
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) { perror(path); exit(1); }
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    request = malloc(size);
    request_length = fread(request, 1, size, file);
    fclose(file);
}

/* The file's requests, each after a line with its length. */
static void split_requests(void) {
    int room = 0;
    for (char *at = request, *end = request + request_length; at < end;) {
        if (each_count == room) {
            room = room ? 2 * room : 1024;
            each = realloc(each, room * sizeof *each);
            each_lengths = realloc(each_lengths, room * sizeof *each_lengths);
        }
        each_lengths[each_count] = strtol(at, &at, 10);
        each[each_count] = at + 1;
        at += 1 + each_lengths[each_count++];
    }
}

int main(int count, char **arguments) {
    if (count < 7) { fprintf(stderr, "usage: load closed|each|open|streams PORT REQUEST_FILE CONNECTIONS WARMUP_S WINDOW_S [RATE]\n"); return 2; }
    open_mode = !strcmp(arguments[1], "open");
    streams_mode = !strcmp(arguments[1], "streams");
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(arguments[2]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    read_request(arguments[3]);
    if (!strcmp(arguments[1], "each")) split_requests();
    connections = atoi(arguments[4]);
    uint64_t warmup_us = atof(arguments[5]) * 1e6, window_us = atof(arguments[6]) * 1e6;
    double rate = count > 7 ? atof(arguments[7]) : 0;
    epoll_fd = epoll_create1(0);
    all = calloc(connections, sizeof *all);
    idle = calloc(connections, sizeof *idle);
    planned = calloc(planned_size, sizeof *planned);
    samples = malloc(sizeof *samples * (size_t)SAMPLES_MAX);

    /* epoll_wait counts milliseconds; the open loop needs its planned times to the microsecond */
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event watch = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer, &watch);

    uint64_t start = now_us(), window_start = start + warmup_us, end = window_start + window_us, real_start = 0;
    uint64_t sent = 0;
    int opened = 0;
    if (!streams_mode)
        for (; opened < connections; opened++) {
            open_connection(&all[opened]);
            next_request(&all[opened]);
        }
    for (;;) {
        uint64_t now = now_us(), wake = in_window ? end : window_start;
        if (!in_window && now >= window_start) {
            printf("window\n");
            fflush(stdout);
            in_window = 1;
            real_start = now_us();
            end = real_start + window_us;
            wake = end;
        } else if (in_window && now >= end) {
            break;
        }
        if (streams_mode && opened < connections) {
            uint64_t wanted = (now - start) * connections / 1000000 + 1;
            for (; opened < connections && (uint64_t)opened < wanted; opened++) {
                open_connection(&all[opened]);
                next_request(&all[opened]);
            }
            if (opened < connections) wake = start + (uint64_t)opened * 1000000 / connections;
        }
        if (open_mode) {
            uint64_t due;
            while ((due = start + (uint64_t)(sent * 1e6 / rate)) <= now) {
                sent++;
                if (idle_count) {
                    send_request(idle[--idle_count], due);
                } else if (planned_count < planned_size) {
                    planned[(planned_first + planned_count++) % planned_size] = due;
                }
            }
            if (due < wake) wake = due;
        }
        uint64_t after = now_us(), wait = wake > after ? wake - after : 1;
        struct itimerspec alarm = {.it_value = {.tv_sec = wait / 1000000, .tv_nsec = wait % 1000000 * 1000}};
        timerfd_settime(timer, 0, &alarm, NULL);
        int ready = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr) {
                readable(events[i].data.ptr);
            } else {
                uint64_t ignored;
                if (read(timer, &ignored, sizeof ignored) < 0) continue;
            }
        }
    }
    double seconds = (now_us() - real_start) / 1e6;
    printf("end\n");
    fflush(stdout);
    qsort(samples, sample_count, sizeof *samples, ascending);
    printf("{\"requests\":%lu,\"chunks\":%lu,\"errors\":%lu,\"all_errors\":%lu,\"last_status\":%d,\"seconds\":%.6f,"
           "\"samples\":%lu,\"p50_us\":%u,\"p90_us\":%u,\"p99_us\":%u,\"p999_us\":%u,\"max_us\":%u,\"queued\":%d,\"sent\":%d,\"answered\":%lu}\n",
           requests, chunks, errors, all_errors, last_status, seconds, sample_count, percentile(.5), percentile(.9),
           percentile(.99), percentile(.999), percentile(1), planned_count, each_next, answered);
    return 0;
}
