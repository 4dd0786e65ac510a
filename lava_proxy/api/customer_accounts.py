"""/v1/customers/{id}/wallet, /ledger, /payment_methods, /charges, /adjustments and /v1/charges/{id}/refund: customers' money."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import Field, PlainValidator, WithJsonSchema

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.balances import live_wallet
from lava_proxy.api.customers import Balances
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import LIMIT_DEFAULT, Amount, Limit, Name, PageQuery, Timestamp, Usd, list_of
from lava_proxy.api.formats import balance_fields, listing, timestamp
from lava_proxy.api.operations import Answer, Body, Operation, QueryString
from lava_proxy.api.payments import (
    ChargeAnswer,
    FundAnswer,
    FundBody,
    PaymentMethods,
    PaymentServices,
    RefundAnswer,
    charge_object,
    once_key,
    refund_object,
)
from lava_proxy.api.queries import path_reference
from lava_proxy.api.wallet import fund_wallet, list_cards
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.money import AMOUNT_NANOS_MAX, Nanos, cents_of_nanos, format_usd, parse_usd
from lava_proxy.stores.balance_store import BUNDLE_PRIORITY, CYCLE_PRIORITY
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.charge_store import MoneyBack
from lava_proxy.stores.outbox import Outbox, WalletState

TAG = "Customers' money"
_NEVER_S = 99_999_999_999
_CLASSES = {f"p:{CYCLE_PRIORITY}": "cycle", f"p:{BUNDLE_PRIORITY}": "bundle"}
_TYPES = {"settle": "usage", "credit": "credit", "renew": "renewal", "adjust": "adjustment", "expire": "expiry"}
_SEQUENCE = re.compile(r"[0-9]{1,15}")


def _signed(value: object) -> Nanos:
    try:
        nanos = parse_usd(value) if isinstance(value, str) else Nanos(0)
    except ValueError:
        nanos = Nanos(0)
    if not 0 < abs(nanos) <= AMOUNT_NANOS_MAX:
        raise ValueError('accepted are dollars in a string, such as "5.00" or "-2.50", not 0, with at most nine places')
    return nanos


def _sequence(value: object) -> int | None:
    if not value:
        return None
    if not isinstance(value, str) or not _SEQUENCE.fullmatch(value) or not value.isascii():
        raise ValueError("accepted is the next_cursor of the page before")
    return int(value)


class AdjustmentBody(Body):
    amount: Annotated[
        Nanos,
        PlainValidator(_signed),
        WithJsonSchema({"type": "string", "description": "Signed dollars, at most nine places.", "examples": ["-2.50"]}),
    ]
    reason: Annotated[Name, Field(description="Kept with the ledger entry, for whoever asks later.")]


class AdjustmentAnswer(Answer):
    adjustment_id: str
    customer_id: str
    amount: Amount
    reason: str
    created_at: Timestamp


class RefundBody(Body):
    amount: Annotated[Usd | None, Field(description="Dollars in whole cents; all that is left of the charge when left out.")] = None
    reason: Name = "requested by the merchant"
    claim_used_credit: Annotated[
        bool, Field(description="Of a bundle or plan: what has been used of its credit is owed, up to the amount refunded.")
    ] = False


class LedgerQuery(QueryString):
    limit: Limit = LIMIT_DEFAULT
    cursor: Annotated[
        int | None,
        PlainValidator(_sequence),
        WithJsonSchema({"type": "string", "description": "The next_cursor of the page before."}),
    ] = None


class ChargesQuery(PageQuery):
    prefix: ClassVar[str] = "chg"


class LedgerEntryAnswer(Answer):
    entry_id: Annotated[str, Field(description="Its place in the wallet's ledger; newest first.")]
    type: Annotated[str, Field(description="usage, credit, renewal, adjustment, refund, dispute or expiry.")]
    reference: Annotated[str, Field(description="The request, credit, adjustment or renewal that it comes from.")]
    amount: Amount
    balance: Amount
    debt: Amount
    reason: str | None
    created_at: Timestamp


class LotAnswer(Answer):
    lot_id: str
    lot_class: Annotated[str, Field(description="cycle, bundle or funds; in the order in which they are used.")]
    remaining: Amount
    expires_at: Timestamp | None


class CustomerWalletAnswer(Balances):
    customer_id: str
    wallet_id: str
    debt: Amount
    overdraft: Annotated[Amount, Field(description="How far below zero calls may go now.")]
    limited_reason: Annotated[str | None, Field(description="Why the card cannot be charged: no_card, suspended, requires_action.")]
    lots: list[LotAnswer]


class CustomerAccounts:
    """Customers' wallets, ledgers, cards and charges: extensions."""

    def __init__(self, catalog: CatalogStore, outbox: Outbox, payments: PaymentServices, audit: Audit) -> None:
        self._catalog = catalog
        self._outbox = outbox
        self._payments = payments
        self._audit = audit

    def operations(self) -> list[Operation]:
        one = "/v1/customers/{customer}"
        return [
            Operation(
                method="GET", path=one + "/wallet", handler=self.wallet, tag=TAG, summary="Read a customer's wallet",
                answer=CustomerWalletAnswer,
            ),
            Operation(
                method="POST", path=one + "/wallet/fund", handler=self.fund, tag=TAG, summary="Add funds by a customer's card",
                body=FundBody, answer=FundAnswer, refuses=(402, 501),
                description="With an Idempotency-Key the card is charged once, however often the request is repeated.",
            ),
            Operation(
                method="GET", path=one + "/ledger", handler=self.ledger, tag=TAG, summary="List a customer's credits and debits",
                query=LedgerQuery, answer=list_of(LedgerEntryAnswer),
            ),
            Operation(
                method="GET", path=one + "/payment_methods", handler=self.cards, tag=TAG, summary="List a customer's cards",
                answer=PaymentMethods,
            ),
            Operation(
                method="GET", path=one + "/charges", handler=self.charges, tag=TAG, summary="List charges with receipts",
                query=ChargesQuery, answer=list_of(ChargeAnswer),
            ),
            Operation(
                method="POST", path=one + "/adjustments", handler=self.adjust, tag=TAG, summary="Adjust a customer's balance",
                body=AdjustmentBody, answer=AdjustmentAnswer, status=201,
                description="Signed; below zero it may leave debt. Who did it and why is kept.",
            ),
            Operation(
                method="POST", path="/v1/charges/{charge}/refund", handler=self.refund, tag=TAG, summary="Refund a charge",
                body=RefundBody, answer=RefundAnswer, status=201, refuses=(501,),
                description="Funds give back what the card gets; what is not there any more is debt. Of a bundle's or a plan's "
                "credit the refund's share goes, as far as it has not been used (see claim_used_credit).",
            ),
        ]  # fmt: skip

    async def wallet(self, request: web.Request) -> web.Response:
        found = await self._found(request)
        state = await live_wallet(self._outbox, found.wallet_id)
        overdraft, limited = await self._payments.account_store.line(found.wallet_id)
        return json_response(
            {
                "customer_id": found.connection_id,
                "wallet_id": found.wallet_id,
                **balance_fields(state),
                "debt": format_usd(state.debt),
                "overdraft": format_usd(overdraft),
                "limited_reason": limited or None,
                "lots": lot_objects(state),
            }
        )

    async def fund(self, request: web.Request, body: FundBody) -> web.Response:
        found = await self._found(request)
        return await fund_wallet(request, body, self._payments, self._outbox, found.merchant_id, found.wallet_id)

    async def ledger(self, request: web.Request, query: LedgerQuery) -> web.Response:
        """Newest first; an entry is there within a second of what it tells."""
        found = await self._found(request)
        rows = await self._payments.account_store.ledger(found.wallet_id, before=query.cursor, limit=query.limit + 1)
        return json_response(listing([_entry_object(row) for row in rows], query.limit, "entry_id"))

    async def cards(self, request: web.Request) -> web.Response:
        return await list_cards(self._payments, (await self._found(request)).wallet_id)

    async def charges(self, request: web.Request, query: ChargesQuery) -> web.Response:
        """Newest first."""
        found, payments = await self._found(request), self._payments
        charges = await payments.charge_store.charges(found.wallet_id, before=query.cursor, limit=query.limit + 1)
        refunded = await payments.account_store.refunded_cents([charge.charge_id for charge in charges])
        cards = {
            card_id: await payments.charge_store.payment_method(card_id, also_detached=True)
            for card_id in sorted({charge.payment_method_id for charge in charges if charge.payment_method_id})
        }
        items = [
            charge_object(charge, refunded.get(charge.charge_id, 0), cards.get(charge.payment_method_id or ""))
            for charge in charges
        ]
        return json_response(listing(items, query.limit, "charge_id"))

    async def adjust(self, request: web.Request, body: AdjustmentBody) -> web.Response:
        found = await self._found(request)

        async def note(db: Any, adjust_id: str) -> None:
            facts = {"adjust_id": adjust_id, "amount_nanos": body.amount, "reason": body.reason}
            await self._audit.note(db, request, "customer.adjust", found.connection_id, after=facts)

        adjust_id = await self._payments.accounts.adjust(
            found.merchant_id, found.wallet_id, body.amount, body.reason, made_by="api",
            adjust_id=once_key(request, "adj", found.wallet_id), note=note,
        )  # fmt: skip
        return json_response(
            {
                "adjustment_id": adjust_id,
                "customer_id": found.connection_id,
                "amount": format_usd(body.amount),
                "reason": body.reason,
                "created_at": timestamp(self._payments.accounts.clock()),
            },
            201,
        )

    async def refund(self, request: web.Request, body: RefundBody) -> web.Response:
        """A charge of a customer's; what was paid into the own wallet is the installation's to give back."""
        charge_id, merchant = path_reference(request, "charge"), merchant_of(request)
        try:
            cents = None if body.amount is None else cents_of_nanos(body.amount)
        except ValueError:
            raise CallerError("amount: accepted are whole cents.", code="invalid_parameter") from None
        charge = await self._payments.charge_store.charge(charge_id)
        if charge.merchant_id != merchant.merchant_id or charge.wallet_id == merchant.wallet_id:
            raise NotFound(f"No charge {charge_id!r}.")

        async def note(db: Any, back: MoneyBack) -> None:
            facts = {
                "refund_id": back.refund_id, "amount_cents": back.amount_cents, "reason": body.reason,
                "claims_used": body.claim_used_credit,
            }  # fmt: skip
            await self._audit.note(db, request, "payment.refund", charge_id, after=facts)

        back = await self._payments.charges.refund(
            charge_id, cents, body.reason, refund_id=once_key(request, "ref", charge_id), claims_used=body.claim_used_credit,
            note=note,
        )  # fmt: skip
        return json_response(refund_object(back), 201)

    async def _found(self, request: web.Request) -> Connection:
        connection = await self._catalog.connection(merchant_of(request).merchant_id, path_reference(request, "customer"))
        if connection is None:
            raise NotFound("No customer of yours has this id or reference_id.")
        return connection


def lot_objects(state: WalletState) -> list[dict[str, Any]]:
    """What a wallet's credit consists of, in the order in which it is used; what only open calls may still use is left out."""
    found = []
    for key in sorted(key for key in state.lots if key[0] in "pf"):
        pot, priority, expires_s, _, lot_id = key.split(":", 4)
        expires = None if int(expires_s) >= _NEVER_S else timestamp(datetime.fromtimestamp(int(expires_s), UTC))
        found.append(
            {
                "lot_id": lot_id,
                "lot_class": _CLASSES.get(f"{pot}:{int(priority)}", "funds" if pot == "f" else "plan"),
                "remaining": format_usd(state.lots[key]),
                "expires_at": expires,
            }
        )
    # Plan credit is used before funds.
    return [lot for lot in found if lot["lot_class"] != "funds"] + [lot for lot in found if lot["lot_class"] == "funds"]


def _entry_object(row: dict[str, Any]) -> dict[str, Any]:
    kind, reason = _TYPES.get(row["kind"], row["kind"]), row["reason"]
    if kind == "adjustment" and row["request_id"].startswith("ref_"):
        kind = "dispute" if (reason or "").startswith("dispute") else "refund"
    return {
        "entry_id": str(row["wseq"]),
        "type": kind,
        "reference": row["request_id"],
        "amount": format_usd(row["amount_nanos"]),
        "balance": format_usd(row["balance_nanos"]),
        "debt": format_usd(row["debt_nanos"]),
        "reason": reason,
        "created_at": timestamp(row["at"]),
    }
