"""A fake Stripe on loopback: the dozen routes we use, idempotency as the real one's, faults on demand, and a counter of money.

`captured_cents` of a customer is the oracle of the payment tests: what was really taken, whatever our side believes. Requests come
from the official SDK, so their encoding is real. Behaviour after docs.stripe.com (idempotent requests, testing, webhooks; 2026-11).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import ClientSession, web

FaultKind = Literal["drop_before", "drop_after", "error_before", "error_after", "busy", "wait"]
KEY_LIFE_S = 24 * 3600
_NUMBERS = itertools.count(1)  # of all fakes of a process: they may meet in one database

CARDS: dict[str, tuple[str, str]] = {
    "4242424242424242": ("visa", "pays"),
    "4000000000000002": ("visa", "refused"),
    "4000000000000341": ("visa", "refused_when_charged"),
    "4000000000009995": ("visa", "no_funds"),
    "4000002500003155": ("visa", "needs_holder"),
}


@dataclass(slots=True)
class Fault:
    """What happens to the next request whose `METHOD path` matches."""

    pattern: str
    kind: FaultKind
    gate: asyncio.Event = field(default_factory=asyncio.Event)  # for `wait`: the request goes on when it is set
    reached: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Answer:
    fingerprint: str
    at: int
    status: int | None = None  # None: in flight
    body: dict[str, Any] = field(default_factory=dict)


class Refusal(Exception):
    """An error answer of the API."""

    def __init__(self, status: int, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"type": kind, "message": message, **more}}


@dataclass(slots=True)
class FakeStripe:
    """State and faults. `now_s` is the account's clock."""

    now_s: int = 1_795_000_000
    webhook_secret: str = "whsec_fake"
    base_url: str = ""
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    captured_cents: Counter[str] = field(default_factory=Counter)  # customer -> taken, less refunds
    taken_cents: Counter[str] = field(default_factory=Counter)  # customer -> taken
    faults: list[Fault] = field(default_factory=list)
    calls: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, key

    # -- what tests do

    def fail(self, pattern: str, kind: FaultKind) -> Fault:
        """Let the next matching request fail."""
        fault = Fault(pattern, kind)
        self.faults.append(fault)
        return fault

    def finish_setup(self, setup_ref: str, number: str) -> str:
        """What a client's form does with a setup's secret; the payment method."""
        setup = self.objects[setup_ref]
        brand, behaviour = CARDS[number]
        if behaviour == "refused":
            raise Refusal(402, "card_error", "Your card was declined.", code="card_declined")
        method = self._new(
            "pm", "payment_method", type="card", customer=setup["customer"], behaviour=behaviour,
            card={"brand": brand, "last4": number[-4:], "exp_month": 12, "exp_year": 2034},
        )  # fmt: skip
        setup |= {"status": "succeeded", "payment_method": method["id"]}
        self.objects[setup_ref] = setup
        self._emit("setup_intent.succeeded", setup)
        return str(method["id"])

    def authenticate(self, payment_ref: str, *, approve: bool) -> None:
        """What the holder says at the bank."""
        intent = self.objects[payment_ref]
        assert intent["status"] == "requires_action", intent["status"]
        intent["next_action"] = None
        if approve:
            self._capture(intent)
        else:
            self._refuse(intent, "payment_intent_authentication_failure", "", "The holder was not authenticated.")

    def dispute(self, payment_ref: str, amount: int) -> str:
        """The holder objects: the money is gone until it is won."""
        intent = self.objects[payment_ref]
        made = self._new("dp", "dispute", amount=amount, payment_intent=payment_ref, status="needs_response")
        self.captured_cents[intent["customer"]] -= amount
        self._emit("charge.dispute.created", made)
        return str(made["id"])

    def close_dispute(self, dispute_ref: str, *, won: bool) -> None:
        found = self.objects[dispute_ref]
        found["status"] = "won" if won else "lost"
        if won:
            self.captured_cents[self.objects[found["payment_intent"]]["customer"]] += found["amount"]
        self._emit("charge.dispute.closed", found)

    def refund(self, payment_ref: str, amount: int) -> str:
        """As from Stripe's dashboard."""
        return str(self._refund({"payment_intent": payment_ref, "amount": str(amount)})["id"])

    def signature(self, body: bytes, *, at: int | None = None, secret: str | None = None) -> str:
        stamp = self.now_s if at is None else at
        digest = hmac.new((secret or self.webhook_secret).encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        return f"t={stamp},v1={digest}"

    async def send(self, event: dict[str, Any], url: str, *, at: int | None = None, secret: str | None = None) -> int:
        """Deliver a webhook; the receiver's status."""
        body = json.dumps(event).encode()
        headers = {"Stripe-Signature": self.signature(body, at=at, secret=secret), "Content-Type": "application/json"}
        async with ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
            return answer.status

    # -- the API

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        self.calls.append((request.method, request.path, key))
        fault = next((f for f in self.faults if re.search(f.pattern, f"{request.method} {request.path}")), None)
        if fault is not None:
            self.faults.remove(fault)
            if fault.kind == "drop_before":
                return self._drop(request)
            if fault.kind == "error_before":
                return _json(500, {"error": {"type": "api_error", "message": "An error before anything was done."}})
            if fault.kind == "busy":
                return _json(409, {"error": {"type": "idempotency_error", "code": "idempotency_key_in_use", "message": "In use."}})
        status, answer = await self._idempotent(request, body, key, fault)
        if fault is not None and fault.kind == "drop_after":
            return self._drop(request)
        return _json(status, answer)

    async def _idempotent(
        self, request: web.Request, body: str, key: str | None, fault: Fault | None
    ) -> tuple[int, dict[str, Any]]:
        if key is None:
            return self._executed(request, body)
        fingerprint = f"{request.method} {request.path} {body}"
        known = self.answers.get(key)
        if known is not None and known.at + KEY_LIFE_S > self.now_s:
            if known.fingerprint != fingerprint:
                message = "Keys for idempotent requests can only be used with the same parameters they were first used with."
                return 400, {"error": {"type": "idempotency_error", "message": message}}
            if known.status is None:
                return 409, {"error": {"type": "idempotency_error", "code": "idempotency_key_in_use", "message": "In use."}}
            return known.status, known.body
        answer = self.answers[key] = Answer(fingerprint, self.now_s)
        if fault is not None and fault.kind == "wait":
            fault.reached.set()
            await fault.gate.wait()
        status, found = self._executed(request, body)
        if fault is not None and fault.kind == "error_after":
            status, found = 500, {"error": {"type": "api_error", "message": "An error after it was done."}}
        answer.status, answer.body = status, json.loads(json.dumps(found))
        return status, found

    def _executed(self, request: web.Request, body: str) -> tuple[int, dict[str, Any]]:
        values = _unflatten(body if request.method == "POST" else request.query_string)
        parts = request.path.removeprefix("/v1/").split("/")
        try:
            return 200, self._route(request.method, parts, values)
        except Refusal as refusal:
            return refusal.status, refusal.body

    def _route(self, method: str, parts: list[str], values: dict[str, Any]) -> dict[str, Any]:
        resource, ref, action = (*parts, "", "")[:3]
        if action:
            return self._act(resource, ref, action, values)
        if ref and method == "GET":
            return self._get(ref)
        if ref:
            self._get(ref).update({name: value for name, value in values.items() if name != "metadata"})
            return self._get(ref)
        if method == "GET":
            return self._list(resource, values)
        made: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "customers": lambda v: self._new("cus", "customer", **v),
            "setup_intents": lambda v: self._secret(
                self._new("seti", "setup_intent", status="requires_payment_method", payment_method=None, **v)
            ),
            "payment_intents": self._intent,
            "refunds": self._refund,
        }
        return made[resource](values)

    def _act(self, resource: str, ref: str, action: str, values: dict[str, Any]) -> dict[str, Any]:
        thing = self._get(ref)
        if (resource, action) == ("payment_intents", "confirm"):
            return self._confirm(thing, values)
        if (resource, action) == ("payment_intents", "cancel"):
            if thing["status"] in ("succeeded", "canceled", "processing"):
                raise _unexpected(thing)
            thing["status"] = "canceled"
            self._emit("payment_intent.canceled", thing)
        elif (resource, action) == ("payment_methods", "attach"):
            if thing["customer"] not in (None, values["customer"]):
                raise Refusal(400, "invalid_request_error", "This card is another customer's.", code="card_not_usable")
            thing["customer"] = values["customer"]
        elif (resource, action) == ("payment_methods", "detach"):
            if thing["customer"] is None:
                raise Refusal(400, "invalid_request_error", "This card is nobody's.", code="not_attached")
            thing["customer"] = None
        else:
            raise Refusal(404, "invalid_request_error", f"Unrecognized request URL: {resource}/{action}")
        return thing

    def _intent(self, values: dict[str, Any]) -> dict[str, Any]:
        self._get(values["customer"])
        values["amount"] = int(values["amount"])
        if values["amount"] < 50:
            raise Refusal(400, "invalid_request_error", "Amount must be at least $0.50 usd.", code="amount_too_small")
        return self._secret(
            self._new(
                "pi",
                "payment_intent",
                status="requires_confirmation",
                amount_received=0,
                latest_charge=None,
                last_payment_error=None,
                next_action=None,
                **values,
            )
        )

    def _confirm(self, intent: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        if intent["status"] not in ("requires_confirmation", "requires_payment_method"):
            raise _unexpected(intent)
        method = self._get(values.get("payment_method") or intent["payment_method"])
        if method["customer"] != intent["customer"]:
            raise Refusal(400, "invalid_request_error", "The card is not the customer's.", code="payment_method_unattached")
        intent["payment_method"] = method["id"]
        behaviour = method["behaviour"]
        if behaviour == "needs_holder" and values.get("off_session") == "true":
            raise self._refuse(intent, "authentication_required", "authentication_required", "Your card needs authentication.")
        if behaviour == "needs_holder":
            url = f"{self.base_url}/bank/{intent['id']}"
            intent |= {"status": "requires_action", "next_action": {"type": "redirect_to_url", "redirect_to_url": {"url": url}}}
            self._emit("payment_intent.requires_action", intent)
        elif behaviour == "pays":
            self._capture(intent)
        else:
            reason = "insufficient_funds" if behaviour == "no_funds" else "generic_decline"
            raise self._refuse(intent, "card_declined", reason, "Your card was declined.")
        return intent

    def _capture(self, intent: dict[str, Any]) -> None:
        assert intent["status"] != "succeeded"
        intent |= {
            "status": "succeeded", "amount_received": intent["amount"], "latest_charge": f"ch_{next(_NUMBERS)}",
            "last_payment_error": None, "next_action": None,
        }  # fmt: skip
        self.captured_cents[intent["customer"]] += intent["amount"]
        self.taken_cents[intent["customer"]] += intent["amount"]
        self._emit("payment_intent.succeeded", intent)

    def _refuse(self, intent: dict[str, Any], code: str, reason: str, message: str) -> Refusal:
        intent |= {"status": "requires_payment_method", "latest_charge": f"ch_{next(_NUMBERS)}", "next_action": None}
        facts = {"code": code, "message": message, "charge": intent["latest_charge"]}
        if reason:
            facts["decline_code"] = reason
        intent["last_payment_error"] = {"type": "card_error", **facts}
        self._emit("payment_intent.payment_failed", intent)
        return Refusal(402, "card_error", payment_intent=json.loads(json.dumps(intent)), **facts)

    def _refund(self, values: dict[str, Any]) -> dict[str, Any]:
        intent = self._get(values["payment_intent"])
        amount = int(values["amount"])
        given = sum(o["amount"] for o in self.objects.values() if o["object"] == "refund" and o["payment_intent"] == intent["id"])
        if amount > intent["amount_received"] - given:
            raise Refusal(400, "invalid_request_error", "Refund amount is greater than unrefunded amount.", code="charge_too_large")
        made = self._new("re", "refund", status="succeeded", **(values | {"amount": amount}))
        self.captured_cents[intent["customer"]] -= amount
        self._emit("charge.refunded", {"id": intent["latest_charge"], "object": "charge", "payment_intent": intent["id"]})
        return made

    def _list(self, resource: str, values: dict[str, Any]) -> dict[str, Any]:
        if resource == "events":
            return {"object": "list", "data": self.events[::-1], "has_more": False, "url": "/v1/events"}
        kind = resource.removesuffix("s")
        bounds = values.get("created") or {}
        found = [
            thing
            for thing in reversed(self.objects.values())
            if thing["object"] == kind
            and all(thing.get(name) == values[name] for name in ("customer", "payment_intent", "type") if name in values)
            and int(bounds.get("gte", 0)) <= thing["created"] < int(bounds.get("lt", 2**40))
        ]
        start = next((n + 1 for n, thing in enumerate(found) if thing["id"] == values.get("starting_after")), 0)
        page = found[start : start + int(values.get("limit", 10))]
        more = start + len(page) < len(found)
        return {"object": "list", "data": page, "has_more": more, "url": f"/v1/{resource}"}

    # -- plumbing

    def _new(self, prefix: str, kind: str, **values: Any) -> dict[str, Any]:
        made = {"id": f"{prefix}_{next(_NUMBERS):06d}", "object": kind, "created": self.now_s, "metadata": {}} | values
        self.objects[made["id"]] = made
        return made

    def _secret(self, thing: dict[str, Any]) -> dict[str, Any]:
        thing["client_secret"] = f"{thing['id']}_secret_x"
        return thing

    def _get(self, ref: str) -> dict[str, Any]:
        if ref not in self.objects:
            raise Refusal(404, "invalid_request_error", f"No such object: {ref!r}", code="resource_missing")
        return self.objects[ref]

    def _emit(self, kind: str, thing: dict[str, Any]) -> None:
        event = {
            "id": f"evt_{next(_NUMBERS):06d}", "object": "event", "type": kind, "created": self.now_s,
            "data": {"object": json.loads(json.dumps(thing))},
        }  # fmt: skip
        self.events.append(event)

    def _drop(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


def _unexpected(intent: dict[str, Any]) -> Refusal:
    return Refusal(
        400, "invalid_request_error", f"This PaymentIntent is {intent['status']}.", code="payment_intent_unexpected_state"
    )


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.json_response(body, status=status, headers={"Request-Id": "req_fake"})


def _unflatten(text: str) -> dict[str, Any]:
    """`a[b]=1&c[0]=2` as the API reads it."""
    from urllib.parse import parse_qsl

    found: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        path = re.findall(r"[^\[\]]+", name)
        inner = found
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    return found


@asynccontextmanager
async def fake_stripe(**options: Any) -> AsyncIterator[FakeStripe]:
    """Serving on a free loopback port."""
    fake = FakeStripe(**options)
    application = web.Application()
    application.router.add_route("*", "/v1/{rest:.*}", fake.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = runner.addresses[0]
    fake.base_url = f"http://127.0.0.1:{address[1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()
