"""A shop set up over REST alone, on the running daemon: a customer, a price, a call, a new price, the end."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lava_proxy.domain.money import parse_usd
from lava_proxy.wire.forward_token import mint
from tests.daemon import Daemon, until

_IN_A_ROW = 6  # so many answers by two workers come from one only once in 32 times, and then the other has had its time
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}


def send(daemon: Daemon, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, Any, Any]:
    """Status, JSON and headers of one request through the public port."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key or daemon.info['secret_key']}", "Content-Type": "application/json"}
    try:
        with urlopen(Request(daemon.base_url + path, data, headers, method=method), timeout=30) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def test_a_merchant_sells_with_nothing_but_rest(daemon: Daemon) -> None:
    """And every change holds for the calls that follow within moments, on each of the gateway's workers."""
    assert send(daemon, "POST", "customers", {"name": "Ada Lovelace"})[0] == 201
    merchant = daemon.info["merchant_id"]
    funded = daemon.cli("customer", "create", "--merchant", merchant, "--funds", "5.00", "--reference-id", "e2e-rest")
    status, customer, headers = send(daemon, "POST", "customers", {"reference_id": "e2e-rest"})
    assert (status, customer["customer_id"], customer["balance"]) == (200, funded["connection_id"], "5.0000000000")
    assert headers["X-RateLimit-Limit"] == "1000"
    price = {"name": "REST", "rate_type": "fixed", "tier_type": "requests", "tiers": [{"start": "0", "rate": "0.25"}]}
    status, meter, _ = send(daemon, "POST", "meters", price)
    assert (status, meter["meter_slug"]) == (201, "rest")
    status, key, _ = send(daemon, "POST", "secret_keys", {"name": "e2e"})
    assert status == 201
    token = mint(key["secret_key"], "e2e-rest", "rest")
    assert charged(daemon, token) == "0.2500000000"

    status, _, _ = send(daemon, "PATCH", f"meters/{meter['meter_id']}", {"tiers": [{"start": "0", "rate": "0.5"}]})
    assert status == 200
    charges = [parse_usd("0.25")]

    def is_price_new() -> bool | None:
        charges.append(parse_usd(charged(daemon, token)))
        return charges[-_IN_A_ROW:] == [parse_usd("0.5")] * _IN_A_ROW or None

    until(is_price_new, "the new price at all workers")
    assert parse_usd(send(daemon, "GET", "customers/e2e-rest")[1]["balance"]) == parse_usd("5") - sum(charges)

    for path, code in ((f"meters/{meter['meter_id']}", "meter_archived"), (f"customers/{customer['customer_id']}", None)):
        assert send(daemon, "DELETE", path)[0] == 200
        until_all_answer(daemon, token, {(403, code or "meter_archived"), (403, "connection_not_found")})
    assert send(daemon, "DELETE", f"secret_keys/{key['secret_key_id']}")[0] == 200
    until_all_answer(daemon, token, {(401, "invalid_secret_key")})


def test_the_public_port_serves_the_openapi_document_without_a_key(daemon: Daemon) -> None:
    with urlopen(daemon.base_url.removesuffix("v1/") + "openapi.json", timeout=30) as answer:
        document = json.loads(answer.read())
    assert document["openapi"] == "3.1.0" and "/v1/customers" in document["paths"]


def call(daemon: Daemon, token: str) -> tuple[int, Any, Any]:
    return send(daemon, "POST", "forward/openai/v1/chat/completions", CHAT, token)


def until_all_answer(daemon: Daemon, token: str, expected: set[tuple[int, str]]) -> None:
    """Until some calls in a row, which go to any of the workers, have answered with these statuses and codes only."""

    def answered() -> set[tuple[int, str]]:
        answers = [call(daemon, token) for _ in range(_IN_A_ROW)]
        return {(status, "" if status == 200 else body["error"]["code"]) for status, body, _ in answers}

    until(lambda: answered() <= expected or None, f"{expected} from all workers")


def charged(daemon: Daemon, token: str) -> str:
    status, found, headers = call(daemon, token)
    assert status == 200, found
    row = until(lambda: daemon.row(headers["x-lava-request-id"]), "the row")
    return str(row["charge"]["amount"])
