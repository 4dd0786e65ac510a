"""How calls end and what each ending costs: one row, one debit, no hold left (the harness checks that after every test)."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import DONE, Call, Client, chat_body, chat_events, event, google_events, usage_event
from tests.integration.gateway.harness import CUSTOMER_NANOS, NANOS_PER_TOKEN, Gateway, chat_request, with_upstream

GOOGLE = "/v1/forward/google/v1beta/models/gemini-2.0-flash:streamGenerateContent?alt=sse"
GOOGLE_REQUEST = {"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"maxOutputTokens": 100}}
MESSAGES = "/v1/forward/anthropic/v1/messages"
GROQ = "/v1/forward/groq/openai/v1/chat/completions"


async def stream(gateway: Gateway, **options: Any) -> tuple[Client, Call]:
    """A stream whose head has reached the client."""
    client = await gateway.client()
    client.send(gateway.request(options.pop("body", None) or chat_request(stream=True), **options))
    call = await gateway.provider.next_call()
    call.begin()
    assert (await client.head()).status == 200
    return client, call


async def expect_cut(client: Client) -> None:
    """The connection ends without the body's last chunk."""
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        while await client.chunk():
            pass


# -- refused before anything is sent


async def test_a_balance_that_does_not_cover_the_call_is_a_402_before_the_provider_is_contacted(gateway: Gateway) -> None:
    client = await gateway.client()
    client.send(gateway.request(chat_request(max_tokens=2_000_000)))
    response = await client.response()
    assert (response.status, response.error_code) == (402, "insufficient_funds")
    assert gateway.provider.connections_made == 0
    assert await gateway.rows() == []
    assert await gateway.balance() == CUSTOMER_NANOS


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "google"])
@pytest.mark.parametrize(
    ("token", "status"),
    [(None, 401), ("nonsense", 401), ("aks_test_unknown", 401), ("wrong customer", 403), ("wrong meter", 403)],
)
async def test_refusals_speak_the_dialect_of_the_callers_sdk(
    gateway: Gateway, dialect: str, token: str | None, status: int
) -> None:
    from lava_proxy.wire.forward_token import mint

    if token == "wrong customer":
        token = mint(gateway.secret_key, "con_unknown", "fixed")
    elif token == "wrong meter":
        token = mint(gateway.secret_key, gateway.connection.connection_id, "unknown")
    targets = {"openai": "/v1/forward/openai/v1/chat/completions", "anthropic": MESSAGES, "google": GOOGLE}
    client = await gateway.client()
    client.send(gateway.request(target=targets[dialect], token=token))
    response = await client.response()
    assert response.status == status
    body = response.json()
    if dialect == "anthropic":
        assert body["type"] == "error"
        assert body["error"]["type"] == {401: "authentication_error", 403: "permission_error"}[status]
    elif dialect == "google":
        assert (body["error"]["code"], body["error"]["status"]) == (
            status,
            {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}[status],
        )
    else:
        assert body["error"]["type"] == {401: "authentication_error", 403: "permission_error"}[status]
    assert body["error"]["message"]
    assert gateway.provider.connections_made == 0
    assert await gateway.rows() == []


async def test_a_connection_goes_on_after_a_refusal(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client = await gateway.client()
    for token, status in ((None, 401), ("", 200), ("nonsense", 401), ("", 200)):
        client.send(gateway.request(token=token))
        assert (await client.response()).status == status


# -- the provider refuses or fails


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_errors_of_the_provider_pass_unchanged_and_cost_nothing(gateway: Gateway, status: int, is_stream: bool) -> None:
    """D11: the hold is gone; D6: and what failed is not billed."""
    body = b'{"error":{"message":"provider says no","usage":{"prompt_tokens":9,"completion_tokens":9}}}'
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"7"), (b"x-should-retry", b"true")]
    gateway.provider.answer = lambda call: call.answer(body, status=status, headers=headers, reason=b"No")
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=is_stream)))
    response = await client.response()
    assert (response.status, response.body, response.header(b"retry-after")) == (status, body, b"7")
    row = await gateway.row()
    assert (row["status"], row["outcome"], row["http_status"], row["charge_nanos"]) == ("error", "provider_error", status, 0)
    assert len(gateway.provider.calls) == 1


async def test_a_redirect_is_passed_on_not_followed_and_not_billed(gateway: Gateway) -> None:
    headers = [(b"location", b"https://elsewhere.test/")]
    gateway.provider.answer = lambda call: call.answer(b"", status=307, headers=headers)
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    response = await client.response()
    assert (response.status, response.header(b"location")) == (307, b"https://elsewhere.test/")
    assert (await gateway.row())["charge_nanos"] == 0


async def test_a_provider_that_cannot_be_reached_is_a_502(start: StartGateway) -> None:
    gateway = await start(overrides={"openai": "http://127.0.0.1:1"})
    client = await gateway.client()
    client.send(gateway.request())
    response = await client.response()
    assert (response.status, response.error_code) == (502, "upstream_unreachable")
    row = await gateway.row()
    assert (row["outcome"], row["status"], row["charge_nanos"]) == ("upstream_broken", "error", 0)


async def test_a_provider_that_does_not_accept_in_time_is_a_504(start: StartGateway) -> None:
    """K2: connecting has its own time-out."""
    import socket

    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    port = full.getsockname()[1]
    waiting = []
    for _ in range(3):  # fill the backlog: further connects get no answer
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        waiting.append(one)
    try:
        gateway = await start(overrides={"openai": f"http://127.0.0.1:{port}"}, adjust=with_upstream(connect_timeout_s=0.1))
        client = await gateway.client()
        client.send(gateway.request())
        response = await client.response()
        assert (response.status, response.error_code) == (504, "upstream_timeout")
        assert (await gateway.row())["outcome"] == "upstream_timeout"
    finally:
        for one in (*waiting, full):
            one.close()


async def test_a_provider_without_a_first_byte_in_time_is_a_504(gateway: Gateway) -> None:
    """K2: a provider silent from the first byte on."""
    client = await gateway.client()
    client.send(gateway.request())
    call = await gateway.provider.next_call()
    gateway.check(seconds_later=599)
    gateway.check(seconds_later=601)
    response = await client.response()
    assert (response.status, response.error_code) == (504, "upstream_timeout")
    await call.gone()
    row = await gateway.row()
    assert (row["outcome"], row["status"], row["charge_nanos"]) == ("upstream_timeout", "error", 0)


async def test_a_stream_that_falls_silent_is_cut_and_settled(gateway: Gateway) -> None:
    """K4: a half-open stream does not hang for ever; what was delivered is estimated."""
    client, call = await stream(gateway)
    for sent in chat_events(words=8)[:9]:
        call.chunk(sent)
        await client.chunk()
    gateway.check(seconds_later=0)  # sees that bytes came
    gateway.check(seconds_later=299)
    gateway.check(seconds_later=301)
    await expect_cut(client)
    await call.gone()
    row = await gateway.row()
    assert (row["outcome"], row["status"], row["provenance"]) == ("upstream_timeout", "error", "estimated")
    assert row["charge_nanos"] > 0


async def test_a_slow_stream_that_keeps_sending_is_not_timed_out(gateway: Gateway) -> None:
    """K3: the total time-out is far above any answer."""
    client, call = await stream(gateway)
    events = chat_events(words=4)
    for number, sent in enumerate(events[:-2]):
        call.chunk(sent)
        await client.chunk()
        gateway.check(seconds_later=250 * number)
    call.chunk(events[-2])
    call.chunk(DONE)
    call.end()
    assert await client.chunk() == DONE
    assert await client.chunk() == b""
    assert (await gateway.row())["outcome"] == "completed"


# -- the provider breaks off


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("after", [0, 1, 5, 9])
async def test_a_stream_that_breaks_is_broken_for_the_client_too(gateway: Gateway, how: str, after: int) -> None:
    """D1, D7: no [DONE] and no end of the body is made up; D9: what had come is passed on; D8: the row has amount and outcome."""
    client, call = await stream(gateway)
    events = chat_events(words=8)
    for sent in events[:after]:
        call.chunk(sent)
        assert await client.chunk() == sent
    call.reset() if how == "reset" else call.close()
    await expect_cut(client)
    row = await gateway.row()
    assert (row["outcome"], row["status"], row["http_status"]) == ("upstream_broken", "error", 200)
    assert row["provenance"] == "estimated"
    usage = row["usage"]
    words = max(after - 1, 0)
    assert usage["output_tokens"] <= 2 * words + 1
    assert row["charge_nanos"] == (usage["input_tokens"] + usage["output_tokens"]) * NANOS_PER_TOKEN


async def test_the_last_bytes_before_a_break_reach_the_client(gateway: Gateway) -> None:
    """D9: also when they come together with the break, and also a half event that was held back for the usage chunk."""
    client, call = await stream(gateway)
    call.chunk(b'data: {"choices":[{"delta":{"content":"whole"}}]}\n\n')
    call.chunk(b'data: {"choices":[],"half')
    call.close()
    received = b""
    with pytest.raises(asyncio.IncompleteReadError):
        while data := await client.chunk():
            received += data
    assert received.endswith(b'"whole"}}]}\n\ndata: {"choices":[],"half')
    assert (await gateway.row())["outcome"] == "upstream_broken"


async def test_a_break_is_told_to_an_http_1_0_client_by_a_reset(gateway: Gateway) -> None:
    """D7: its body ends with the connection, so a clean close would look like the whole answer."""
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True), version="HTTP/1.0"))
    call = await gateway.provider.next_call()
    call.begin()
    await client.head()
    call.chunk(b"data: {}\n\n")
    await client.reader.readuntil(b"\n\n")
    call.reset()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(client.reader.read(), 5)
    assert (await gateway.row())["outcome"] == "upstream_broken"


async def test_a_body_shorter_than_its_length_is_broken_off(gateway: Gateway) -> None:
    client = await gateway.client()
    client.send(gateway.request())
    call = await gateway.provider.next_call()
    call.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
    call.close()
    response = await client.response()
    assert (response.status, response.body, response.complete) == (200, b"{", False)
    assert (await gateway.row())["outcome"] == "upstream_broken"


async def test_a_broken_stream_whose_usage_had_come_is_billed_by_it(gateway: Gateway) -> None:
    client, call = await stream(gateway)
    for sent in chat_events()[:-1]:
        call.chunk(sent)
    call.reset()
    await expect_cut(client)
    row = await gateway.row()
    assert (row["outcome"], row["provenance"], row["charge_nanos"]) == ("upstream_broken", "provider_final", 15 * NANOS_PER_TOKEN)


async def test_an_error_event_in_a_stream_is_passed_on_and_its_text_is_not_output(gateway: Gateway) -> None:
    """D3, A17: an error in a stream that had answered 200 is not billed as what was generated."""
    message = "the model is overloaded " * 50
    error = event({"error": {"message": message, "code": 502}, "choices": []})
    client, call = await stream(gateway)
    call.chunk(error)
    call.end()
    assert await client.chunk() == error
    assert await client.chunk() == b""
    row = await gateway.row()
    assert (row["charge_nanos"], row["http_status"]) == (0, 200)


async def test_a_json_error_where_a_stream_was_asked_for_is_passed_on_and_free(gateway: Gateway) -> None:
    body = b'{"error":{"message":"no","type":"server_error"}}'
    gateway.provider.answer = lambda call: call.answer(body)
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    response = await client.response()
    assert (response.status, response.body) == (200, body)
    assert (await gateway.row())["charge_nanos"] == 0


# -- the client goes


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_client_that_leaves_before_the_head_of_its_stream_cancels_it(gateway: Gateway, how: str) -> None:
    """C5: gone during the wait for the first token. A plain close can only be told from a half-close by writing."""
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    if how == "reset":
        client.reset()
        await call.gone()
    else:
        await client.close()
        call.begin()
        while not call.side.gone.is_set():
            if call.side.transport is not None and not call.side.transport.is_closing():
                call.chunk(b": keep-alive\n\n")
            await asyncio.sleep(0)
    row = await gateway.row()
    assert row["outcome"] == "client_gone"
    if how == "reset":
        assert (row["charge_nanos"], row["provenance"], row["http_status"]) == (0, "none", None)
    await gateway.provider.nobody()


@pytest.mark.parametrize("after", [0, 1, 5, 11, 12])
async def test_a_client_that_leaves_a_stream_cancels_it_and_pays_for_what_it_got(gateway: Gateway, after: int) -> None:
    """C1, C2, C6, C8: after chunk k; the provider's connection is closed, and the row says what was delivered."""
    client, call = await stream(gateway)
    events = chat_events(words=10)
    for sent in events[:after]:
        call.chunk(sent)
        assert await client.chunk() == sent
    client.reset()
    await call.gone()
    await gateway.provider.nobody()
    row = await gateway.row()
    assert (row["outcome"], row["status"], row["provenance"]) == ("client_gone", "completed", "estimated")
    usage = row["usage"]
    assert usage["output_tokens"] >= min(max(after - 1, 0), 10)
    assert row["charge_nanos"] == (usage["input_tokens"] + usage["output_tokens"]) * NANOS_PER_TOKEN > 0


async def test_a_client_that_leaves_after_the_usage_pays_by_it(gateway: Gateway) -> None:
    """C7, C10: the usage had come, only [DONE] and the end were missing; nothing is charged twice."""
    client, call = await stream(gateway)
    events = chat_events()
    for sent in events[:-1]:
        call.chunk(sent)
    for _ in events[:-2]:
        await client.chunk()
    client.reset()
    await call.gone()
    row = await gateway.row()
    assert (row["provenance"], row["charge_nanos"]) == ("provider_final", 15 * NANOS_PER_TOKEN)


async def test_a_client_that_closes_with_the_last_byte_is_charged_as_one_that_stayed(gateway: Gateway) -> None:
    """C7: the race of the last byte and the close, both ways round."""
    for number in range(20):
        client, call = await stream(gateway)
        events = chat_events()
        for sent in events:
            call.chunk(sent)
        if number % 2:
            call.end()
            client.reset()
        else:
            client.reset()
            call.end()
        await gateway.settled()
    rows = await gateway.rows()
    assert [(row["provenance"], row["charge_nanos"]) for row in rows] == [("provider_final", 15 * NANOS_PER_TOKEN)] * 20


async def test_a_client_that_leaves_after_the_whole_answer_has_not_gone(gateway: Gateway) -> None:
    """C7: it was given everything."""
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    [exchange] = gateway.exchanges
    connection = exchange.client
    call.begin()
    await client.head()
    exchange.on_end()  # the body's end and the close come in one turn of the loop
    exchange.client_gone()
    connection.transport.abort()
    row = await gateway.row()
    assert row["outcome"] == "completed"


@pytest.mark.parametrize(("target", "body"), [(GOOGLE, GOOGLE_REQUEST), (GROQ, chat_request(stream=True, model="llama"))])
@pytest.mark.parametrize("after", ["the head", "a chunk", "all but the end"])
async def test_where_the_provider_bills_to_the_end_the_stream_is_read_to_its_usage(
    gateway: Gateway, target: str, body: dict[str, Any], after: str
) -> None:
    """C3, C9: drain."""
    client = await gateway.client()
    client.send(gateway.request(body, target=target))
    call = await gateway.provider.next_call()
    events = google_events(4, prompt_tokens=10, completion_tokens=8)
    if target == GROQ:
        final = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "model": "llama"}
        final["x_groq"] = {"usage": {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}}  # type: ignore[assignment]
        events = [*chat_events(words=2, usage=False)[:-2], event(final), DONE]
    call.begin()
    await client.head()
    kept = {"the head": 0, "a chunk": 1, "all but the end": len(events) - 1}[after]
    for sent in events[:kept]:
        call.chunk(sent)
        assert await client.chunk() == sent
    client.reset()
    while not any(exchange.client_left for exchange in gateway.exchanges):
        await asyncio.sleep(0)
    for sent in events[kept:]:
        call.chunk(sent)
    call.end()
    row = await gateway.row()
    assert (row["outcome"], row["provenance"]) == ("client_gone", "provider_final")
    assert row["charge_nanos"] == 18 * NANOS_PER_TOKEN


async def test_a_call_that_is_not_streamed_is_read_to_its_end_without_its_client(gateway: Gateway) -> None:
    """C4: its usage comes last, and the provider bills it anyway."""
    client = await gateway.client()
    client.send(gateway.request())
    call = await gateway.provider.next_call()
    client.reset()
    while not any(exchange.client_left for exchange in gateway.exchanges):
        await asyncio.sleep(0)
    call.answer(chat_body())
    row = await gateway.row()
    assert (row["outcome"], row["provenance"], row["charge_nanos"]) == ("client_gone", "provider_final", 15 * NANOS_PER_TOKEN)


async def test_a_drain_is_bounded_in_bytes(start: StartGateway) -> None:
    gateway = await start(adjust=with_upstream(drain_bytes_max=100_000))
    client, call = await stream(gateway, target=GOOGLE, body=GOOGLE_REQUEST)
    client.reset()
    filler = event({"candidates": [{"content": {"parts": [{"text": "x" * 1000}]}}]})
    for _ in range(1000):
        if call.side.transport is None:
            break
        call.chunk(filler)
        await asyncio.sleep(0)
    await call.gone()
    row = await gateway.row()
    assert (row["outcome"], row["provenance"]) == ("client_gone", "estimated")
    assert row["charge_nanos"] > 0


async def test_a_drain_is_bounded_in_time(gateway: Gateway) -> None:
    client, call = await stream(gateway, target=GOOGLE, body=GOOGLE_REQUEST)
    events = google_events()
    call.chunk(events[0])
    assert await client.chunk() == events[0]
    client.reset()
    while not any(exchange.deadline for exchange in gateway.exchanges):
        await asyncio.sleep(0)
    gateway.check(seconds_later=119)
    assert not call.side.gone.is_set()
    gateway.check(seconds_later=121)
    await call.gone()
    row = await gateway.row()
    assert (row["outcome"], row["provenance"]) == ("client_gone", "estimated")


async def test_a_drain_goes_on_when_the_client_had_stopped_reading(gateway: Gateway) -> None:
    client, call = await stream(gateway, target=GOOGLE, body=GOOGLE_REQUEST)
    [exchange] = gateway.exchanges
    exchange.client_writable(False)  # held back for the client ...
    events = google_events()
    for sent in events:
        call.chunk(sent)
    call.end()
    client.reset()  # ... which then leaves
    row = await gateway.row()
    assert (row["outcome"], row["provenance"]) == ("client_gone", "provider_final")


async def test_a_client_that_leaves_while_its_call_waits_for_the_pool_owes_nothing(start: StartGateway) -> None:
    gateway = await start(adjust=with_upstream(pool_per_host_max=1))
    first, second = await gateway.client(), await gateway.client()
    first.send(gateway.request())
    call = await gateway.provider.next_call()
    second.send(gateway.request())
    while not any(host.waiters for host in gateway.pool._hosts.values()):
        await asyncio.sleep(0)
    second.reset()
    while not any(exchange.client_left for exchange in gateway.exchanges):
        await asyncio.sleep(0)
    call.answer(chat_body())
    assert (await first.response()).status == 200
    rows = await gateway.rows()
    assert sorted(row["charge_nanos"] for row in rows) == [0, 15 * NANOS_PER_TOKEN]
    assert len(gateway.provider.calls) == 1


async def test_a_storm_of_leaving_clients_leaves_a_gateway_that_serves(gateway: Gateway) -> None:
    """K14, C6."""
    await gateway.fund(10**12)
    for _ in range(100):
        client = await gateway.client()
        client.send(gateway.request(chat_request(stream=True)))
    calls = [await gateway.provider.next_call() for _ in range(100)]
    for call in calls[::2]:
        call.begin()
        call.chunk(b"data: {}\n\n")
    for client in gateway.clients:
        client.reset()
    await gateway.provider.nobody()
    await gateway.settled()
    assert gateway.pool.counts() == (0, 0)
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client = await gateway.client()
    client.send(gateway.request())
    assert (await client.response()).status == 200


# -- the usage chunk that we asked for


@pytest.mark.parametrize("seed", range(12))
async def test_the_client_gets_every_byte_but_those_of_the_chunk_we_asked_for(gateway: Gateway, seed: int) -> None:
    """I14: at random splits."""
    chance = random.Random(seed)
    terminator = chance.choice([b"\n\n", b"\r\n\r\n", b"\r\r"])
    before = [e.replace(b"\n\n", terminator) for e in chat_events(words=5, usage=False, word="é東 ")]
    usage = usage_event(10, 5).replace(b"\n\n", terminator)
    if seed % 3 == 0:
        before.insert(2, b": OPENROUTER PROCESSING" + terminator)
    whole = b"".join([*before[:-1], usage, before[-1]])
    expected = b"".join(before)

    def answer(call: Call) -> None:
        call.begin()
        rest = whole
        while rest:
            size = chance.choice([1, 2, 3, 7, 40, 400])
            call.chunk(rest[:size])
            rest = rest[size:]
        call.end()

    gateway.provider.answer = answer
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    assert (await client.response()).body == expected
    assert gateway.provider.calls[0].header(b"accept-encoding") == b"identity"
    assert (await gateway.row())["charge_nanos"] == 15 * NANOS_PER_TOKEN


async def test_a_client_that_asked_for_usage_itself_gets_it(gateway: Gateway) -> None:
    events = chat_events()
    gateway.provider.answer = lambda call: call.stream(events)
    body = json.dumps(chat_request(stream=True, stream_options={"include_usage": True}), indent=2).encode()
    client = await gateway.client()
    client.send(gateway.request(body))
    assert (await client.response()).body == b"".join(events)
    assert gateway.provider.calls[0].body == body


async def test_a_body_without_our_option_goes_upstream_byte_for_byte(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    body = json.dumps(chat_request(emoji="🎉", number=1.50), indent=3, ensure_ascii=False).encode()
    client = await gateway.client()
    client.send(gateway.request(body))
    assert (await client.response()).status == 200
    assert gateway.provider.calls[0].body == body


# -- one settle, whatever happens at once


@pytest.mark.parametrize("seed", range(4))
async def test_random_endings_at_once_leave_one_row_each(gateway: Gateway, seed: int) -> None:
    """A15, K8: forty calls, each ended in its own way while the others run."""
    await gateway.fund(10**12)
    chance = random.Random(seed)
    endings: list[Callable[[Client, Call], None]] = [
        lambda client, call: call.reset(),
        lambda client, call: call.close(),
        lambda client, call: client.reset(),
        lambda client, call: call.end(),
        lambda client, call: (client.reset(), call.reset(), None)[-1],
        lambda client, call: (call.end(), client.reset(), None)[-1],
    ]
    pairs = []
    for number in range(40):
        client = await gateway.client()
        client.send(gateway.request(chat_request(stream=True, user=str(number))))
        pairs.append((client, await gateway.provider.next_call()))
    for _, call in pairs:
        if chance.random() < 0.8:
            call.begin()
            for sent in chat_events()[: chance.randint(0, 7)]:
                call.chunk(sent)
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    for client, call in pairs:
        if call.side.transport is not None:
            chance.choice(endings)(client, call)
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    for client, _ in pairs:  # some calls had no ending: an answer's end without its head is not HTTP
        client.reset()
    assert len(await gateway.rows()) == 40
