"""notify/webhook_client.py: which addresses are accepted, and that a name may not lead inside."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lava_proxy.domain.webhooks import Outgoing, OutgoingEvent
from lava_proxy.notify.webhook_client import WebhookClient, url_problem
from lava_proxy.wire.signature import secret_of
from tests.tls_front import tls_front

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize("url", ["https://shop.example/hooks?a=b", "https://shop.example:8443/", "https://1.1.1.1/x"])
def test_public_https_addresses_are_accepted(url: str) -> None:
    assert url_problem(url, allow_private=False) is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://shop.example/", "https"),
        ("ftp://shop.example/", "https"),
        ("shop.example/hooks", "https"),
        ("https:///hooks", "not a"),
        ("https://user:secret@shop.example/", "user information"),
        ("https://@shop.example/", "user information"),
        ("https://127.0.0.1%2f@shop.example/", "user information"),
        ("https://%31%32%37.0.0.1/", "escapes"),
        ("https://shop.example:99999/", "not a URL"),
        ("https://shop.example:0/", "port 0"),
        ("https://shop.example/#here", "fragment"),
        ("https://shop.example/" + "a" * 2048, "longer"),
        ("https://shöp.example/", "ASCII"),
        ("https://shop.example\\@127.0.0.1/", "ASCII"),
        ("https://shop.example/a b", "ASCII"),
        ("https://127.0.0.1/", "not public"),
        ("https://[::1]/", "not public"),
        ("https://[::ffff:10.0.0.1]/", "not public"),
        ("https://169.254.169.254/latest/meta-data", "link-local"),
        ("https://2852039166/", "ends in a number"),  # 169.254.169.254 as resolvers read it
        ("https://169.254.43518/", "ends in a number"),
        ("https://127.1/", "ends in a number"),
        ("https://0x7f000001/", "ends in a number"),
        ("https://127.0.0.1./", "ends in a number"),
        ("", "https"),
    ],
)
def test_other_addresses_are_refused_with_a_reason(url: str, said: str) -> None:
    problem = url_problem(url, allow_private=False)
    assert problem is not None and said in problem


def test_where_private_receivers_are_allowed_http_and_loopback_are_too() -> None:
    assert url_problem("http://127.0.0.1:3000/hooks", allow_private=True) is None
    assert url_problem("http://user@127.0.0.1:3000/hooks", allow_private=True) is not None


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "169.254.0.1", "[fe80::1]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[fd00:ec2::254]"]
)
def test_where_clouds_keep_their_machines_secrets_nothing_is_sent_whoever_allows_it(host: str) -> None:
    problem = url_problem(f"http://{host}/latest/meta-data", allow_private=True)
    assert problem is not None and "link-local" in problem


async def test_a_name_that_leads_to_a_link_local_address_is_refused_where_private_ones_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def found(*args: object, **options: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("127.0.0.1", "169.254.169.254")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
    client = WebhookClient(timeout_s=2, connections_max=2, allow_private=True, clock=lambda: NOW)
    await client.open()
    try:
        attempt = await client.send(outgoing("http://metadata.example/hooks"))
    finally:
        await client.close()
    assert attempt.status is None and "link-local" in (attempt.error or "")


def outgoing(url: str) -> Outgoing:
    event = OutgoingEvent(
        event_id="evt_1", event_type="webhook.test", sequence=0, created_at=NOW, balance_nanos=None, customer=None
    )
    return Outgoing(
        delivery_id="dlv_1", webhook_id="wh_1", url=url, vocabulary="customer", tries=1, first_try_at=NOW, event=event,
        secrets=(secret_of(bytes(32)),),
    )  # fmt: skip


@asynccontextmanager
async def client_of(*, allow_private: bool) -> AsyncIterator[WebhookClient]:
    client = WebhookClient(timeout_s=1, connections_max=4, allow_private=allow_private, clock=lambda: NOW)
    await client.open()
    try:
        yield client
    finally:
        await client.close()


async def test_a_name_that_leads_inside_is_not_connected_to_however_often_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is what is connected to: the resolver is asked once a try, and its answer is used."""
    connected: list[Any] = []
    loop = asyncio.get_running_loop()
    answers = [["1.1.1.1", "127.0.0.1"], ["10.0.0.8"], ["::ffff:127.0.0.1"]]

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    async def connect(*_: Any, **__: Any) -> Any:
        connected.append(1)
        raise OSError("never")

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", connect)
    async with client_of(allow_private=False) as client:
        for host in ("rebound.example", "inside.example", "mapped.example"):
            attempt = await client.send(outgoing(f"https://{host}/"))
            assert (attempt.status, attempt.error) == (None, f"{host} resolves to an address that is not public.")
    assert connected == [] and answers == []


async def test_a_public_name_is_connected_to_at_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Any] = []

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", port))]

    async def connect(*, addr_infos: Any, **__: Any) -> Any:
        connected.extend(info[4] for info in addr_infos)
        raise OSError("no network in tests")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", connect)
    async with client_of(allow_private=False) as client:
        attempt = await client.send(outgoing("https://shop.example/"))
    assert attempt.status is None and attempt.error is not None and "no network" in attempt.error
    assert connected == [("1.1.1.1", 443)]


async def test_an_address_stored_under_looser_rules_is_not_called_under_stricter_ones() -> None:
    async with client_of(allow_private=False) as client:
        attempt = await client.send(outgoing("http://127.0.0.1:9/"))
    assert attempt.status is None and attempt.error is not None and "https" in attempt.error


async def test_a_receivers_answer_is_kept_in_part_and_without_what_the_store_refuses() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Content-Type"] == "application/json" and "Cookie" not in request.headers
        return web.Response(status=500, body=b"\x00\xff" + b"x" * 100_000, headers={"Set-Cookie": "a=b"})

    application = web.Application()
    application.router.add_post("/", answer)
    async with TestServer(application) as server, client_of(allow_private=True) as client:
        for _ in range(2):
            attempt = await client.send(outgoing(str(server.make_url("/"))))
            assert (attempt.status, attempt.error, len(attempt.excerpt)) == (500, "The receiver answered 500.", 1024)
            assert "\0" not in attempt.excerpt


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    async def answer(_: web.Request) -> web.Response:
        raise AssertionError("nothing is sent to somebody unknown")

    application = web.Application()
    application.router.add_post("/", answer)
    async with TestServer(application) as server, client_of(allow_private=True) as client:
        with tls_front(tmp_path, server.port or 0) as front:
            attempt = await client.send(outgoing(f"https://127.0.0.1:{front.port}/"))
    assert attempt.status is None and attempt.error is not None and "ertificate" in attempt.error
