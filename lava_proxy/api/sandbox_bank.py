"""GET and POST /sandbox/bank/{payment}: what a bank's page is to the cardholder of a test card that needs authentication."""

from __future__ import annotations

from html import escape

from aiohttp import hdrs, web

from lava_proxy.billing.charges import Charges
from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.money import format_usd, nanos_of_cents
from lava_proxy.payments.processor import Payment, Processor

# Nothing but the two buttons; may stand in a frame, since checkouts do.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Test bank</title>
<style>body{{font:16px system-ui;max-width:28rem;margin:3rem auto;padding:0 1rem}}button{{font:inherit;padding:.6rem 1rem}}</style>
</head><body><main><h1>Test bank</h1><p>{text}</p>{form}</main></body></html>"""
_FORM = """<form method="post"><button name="answer" value="approve">Approve</button>
<button name="answer" value="refuse">Refuse</button></form>"""


class SandboxBank:
    """Only where the sandbox processor is; a payment's reference is the key to its page."""

    def __init__(self, processor: Processor, charges: Charges) -> None:
        self._processor = processor
        self._charges = charges

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/sandbox/bank/{payment_ref}", self.show), web.post("/sandbox/bank/{payment_ref}", self.answer)]

    async def show(self, request: web.Request) -> web.Response:
        """The question, while the payment waits for its answer."""
        return _page(await self._processor.payment(request.match_info["payment_ref"]))

    async def answer(self, request: web.Request) -> web.Response:
        """Take the answer once, go on with the charge, and lead back to where it came from."""
        try:
            chosen = (await request.post()).get("answer")
        except (ValueError, LookupError, AssertionError) as error:  # bytes that are no text, an unknown charset, broken parts
            raise CallerError("The body must be a form: URL-encoded or multipart, in UTF-8.", code="invalid_form") from error
        if chosen not in ("approve", "refuse"):
            raise CallerError("answer must be approve or refuse.", code="invalid_answer")
        payment = await self._processor.authenticate(request.match_info["payment_ref"], approve=chosen == "approve")
        charge = await self._charges.refresh_payment(payment.payment_ref)
        if charge is not None and charge.return_url:
            return web.Response(status=303, headers={hdrs.LOCATION: charge.return_url})
        return _page(payment)


def _page(payment: Payment) -> web.Response:
    amount = f"${format_usd(nanos_of_cents(payment.amount_cents), 2)}"
    waits = payment.status == "requires_action"
    text = f"A test payment of {amount} asks for your approval." if waits else f"The test payment of {amount} is {payment.status}."
    body = _PAGE.format(text=escape(text), form=_FORM if waits else "")
    return web.Response(text=body, content_type="text/html", headers={"Content-Security-Policy": _POLICY})
