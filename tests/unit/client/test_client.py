"""The Python client without a server: what it sends, when it tries again, what it raises, what it leaves out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal

import httpx
import pytest

from lava_proxy.client import (
    AuthenticationError,
    ConflictError,
    ConnectionFailed,
    InsufficientFundsError,
    InvalidSignature,
    LavaApiError,
    LavaClient,
    NotFoundError,
    RateLimitError,
    UnavailableError,
    sync_client,
    verify_webhook,
)
from lava_proxy.client.retries import wait_after_answer, wait_after_failure
from lava_proxy.wire.forward_token import parse_credential
from lava_proxy.wire.signature import signature_headers
from tests.client_twin import CLIENT, sync_text

BASE = "http://lava.test/v1"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Server:
    """Gives the prepared answers, the last one again and again; an exception is raised instead."""

    def __init__(self, *answers: httpx.Response | type[httpx.TransportError]) -> None:
        self.answers = list(answers)
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, httpx.Response):
            return answer
        raise answer("no answer")


def refused(status: int, code: str = "busy", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": "A sentence.", "code": code, "status": status}}, headers=headers)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client has slept."""
    found: list[float] = []
    monkeypatch.setattr(sync_client.time, "sleep", found.append)
    return found


def client_of(server: Callable[[httpx.Request], httpx.Response], retries_max: int = 3) -> LavaClient:
    return LavaClient(
        "aks_test_1", base_url=BASE, retries_max=retries_max, http=httpx.Client(transport=httpx.MockTransport(server))
    )


def test_importing_the_client_imports_nothing_of_the_server() -> None:
    program = "import sys, lava_proxy.client; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    heavy = {
        "aiohttp",
        "redis",
        "asyncpg",
        "uvloop",
        "pydantic",
        "jinja2",
        "lava_proxy.stores",
        "lava_proxy.api",
        "lava_proxy.gateway",
    }
    assert heavy & set(done.stdout.split()) == set() and "httpx" in done.stdout.split()


def test_the_two_clients_are_the_same_words() -> None:
    """`python -m tests.client_twin` makes one of the other."""
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(CLIENT / "sync_client.py"), "-"],
        input=sync_text(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert (CLIENT / "sync_client.py").read_text() == ruff.stdout


def test_a_busy_server_is_asked_again_when_it_says_and_with_the_same_key(waits: list[float]) -> None:
    """L1: a POST that is repeated is done once, because its key is the same."""
    server = Server(refused(429, **{"Retry-After": "7"}), refused(503), httpx.Response(201, json={"customer_id": "con_1"}))
    assert client_of(server).customers.create(name="Ada")["customer_id"] == "con_1"
    assert 7 <= waits[0] < 7.5 and 0.5 < waits[1] < 1.5
    keys = {request.headers["idempotency-key"] for request in server.seen}
    assert len(server.seen) == 3 and len(keys) == 1
    client_of(again := Server(httpx.Response(201, json={}))).customers.create(name="Ada", idempotency_key="mine")
    assert again.seen[0].headers["idempotency-key"] == "mine"


def test_a_repeat_that_meets_its_first_try_waits_for_it(waits: list[float]) -> None:
    """L2: the answer of the first POST was lost; the second is told that the first still runs, the third gets its answer."""
    server = Server(httpx.ReadTimeout, refused(409, "idempotency_running"), httpx.Response(201, json={"meter_id": "prd_1"}))
    fields = {"name": "M", "rate_type": "fixed", "tier_type": "requests", "tiers": [{"start": "0", "rate": "1"}]}
    assert client_of(server).meters.create(**fields)["meter_id"] == "prd_1"  # type: ignore[arg-type]
    assert len({request.headers["idempotency-key"] for request in server.seen}) == 1 and len(waits) == 2


def test_what_cannot_be_mended_by_waiting_is_raised_at_once(waits: list[float]) -> None:
    for answer, kind in (
        (refused(400), LavaApiError),
        (refused(401), AuthenticationError),
        (refused(402, "insufficient_funds"), InsufficientFundsError),
        (refused(404), NotFoundError),
        (refused(409, "idempotency_conflict"), ConflictError),
        (refused(429, **{"Retry-After": "86400"}), RateLimitError),
        (httpx.Response(502, content=b"<html>bad gateway"), UnavailableError),
    ):
        server = Server(answer)
        with pytest.raises(kind) as told:
            client_of(server).customers.retrieve("con_1")
        assert told.value.status == answer.status_code and len(server.seen) == 1
    assert waits == []


def test_tries_have_an_end(waits: list[float]) -> None:
    with pytest.raises(UnavailableError):
        client_of(busy := Server(refused(503)), retries_max=2).wallet()
    with pytest.raises(ConnectionFailed, match="GET wallet: ConnectError"):
        client_of(gone := Server(httpx.ConnectError), retries_max=2).wallet()
    assert len(busy.seen) == len(gone.seen) == 3 and len(waits) == 4


def test_a_delete_without_an_answer_is_not_sent_again(waits: list[float]) -> None:
    """The second one would be told that there is no such thing."""
    with pytest.raises(ConnectionFailed):
        client_of(server := Server(httpx.ReadTimeout)).webhooks.delete("wh_1")
    assert len(server.seen) == 1 and waits == []
    with pytest.raises(ConnectionFailed):
        client_of(unreached := Server(httpx.ConnectError)).webhooks.delete("wh_1")
    assert len(unreached.seen) == 4


def test_waits_grow_and_are_never_longer_than_a_minute() -> None:
    assert [wait_after_failure(retries, 500) for retries in range(4)] == [500, 1000, 2000, 4000]
    assert (wait_after_failure(0, 0), wait_after_failure(0, 1000)) == (375, 625)
    assert wait_after_answer(429, {"retry-after": "60"}, b"", 0, 0) == 60_000
    assert wait_after_answer(429, {"retry-after": "61"}, b"", 0, 0) is None
    assert wait_after_answer(503, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"", 1, 500) == 1000
    assert wait_after_answer(500, {}, b"", 0, 0) is wait_after_answer(409, {}, b"<html>", 0, 0) is None


def test_iterating_asks_for_page_after_page() -> None:
    pages = Server(
        httpx.Response(200, json={"data": [{"request_id": "c"}, {"request_id": "b"}], "has_more": True, "next_cursor": "req_b"}),
        httpx.Response(200, json={"data": [{"request_id": "a"}], "has_more": False}),
    )
    found = client_of(pages).requests.iterate(customer_id="con_1", metadata_filters={"feature": "chat"})
    assert [row["request_id"] for row in found] == ["c", "b", "a"]
    first, second = (dict(request.url.params) for request in pages.seen)
    assert first == {"customer_id": "con_1", "metadata_filters": '[["feature", "chat"]]', "limit": "100"}
    assert second == {**first, "cursor": "req_b"}


def test_ids_of_any_letters_stay_one_part_of_the_path_and_numbers_lose_no_digit() -> None:
    server = Server(httpx.Response(200, content=b'{"seconds": 0.1}'))
    assert client_of(server).customers.retrieve("a/b?c d") == {"seconds": Decimal("0.1")}
    assert server.seen[0].url.raw_path == b"/v1/customers/a%2Fb%3Fc%20d"
    with pytest.raises(ValueError, match="an id is needed"):
        client_of(server).customers.delete("")
    client_of(server).requests.report(request_id="1", customer_id="c", meter_slug="m", input_seconds=Decimal("1.5"))
    assert json.loads(server.seen[-1].content)["input_seconds"] == 1.5


def test_tokens_are_the_ones_that_the_gateway_reads_and_keys_are_not_shown() -> None:
    client = client_of(Server(httpx.Response(200, json={})))
    read = parse_credential(client.generate_forward_token(customer_id="user-42", meter_slug="tokens", disable_billing=True))
    assert (read.secret_key, read.customer_ref, read.meter_ref, read.disable_billing) == ("aks_test_1", "user-42", "tokens", True)
    assert client.provider_url("openai") == f"{BASE}/forward/openai" and "aks_test" not in repr(client)
    with pytest.raises(ValueError, match="needs meter_slug"):
        client.generate_forward_token(customer_id="user-42")
    with pytest.raises(ValueError, match="a secret key"):
        LavaClient("", base_url=BASE)


def test_a_webhook_is_verified_over_its_bytes_and_its_time() -> None:
    body = b'{"event":"customer.created","id":"evt_1","data":{}}'
    headers = signature_headers([SECRET], "evt_1", 1_000_000, body)
    assert verify_webhook(body, headers, SECRET, now=1_000_010)["event"] == "customer.created"
    plain = {"x-webhook-signature": headers["X-Webhook-Signature"]}
    assert verify_webhook(body, plain, SECRET)["id"] == "evt_1"
    for changed_body, sent, secret, now in (
        (body + b" ", headers, SECRET, 1_000_010),
        (body, headers, "whsec_other", 1_000_010),
        (body, headers, SECRET, 1_000_301),
        (body + b" ", plain, SECRET, 1_000_010),
        (body, {}, SECRET, 1_000_010),
    ):
        with pytest.raises(InvalidSignature):
            verify_webhook(changed_body, sent, secret, now=now)
