"""Events for webhooks, written in the transaction of what they tell: nothing is told that was not committed.

`add_event` is for transitions (a customer was created, a subscription ended). Balances change with every call, so the flusher only
marks them (`note_balances`), and `emit_balances` makes at most one event a second and wallet of the marks, the last balance
included. Where no endpoint wants to hear of it, nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from lava_proxy.domain.webhooks import BALANCE_UPDATED, EVENT_TYPES
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.outbox import OutboxEntry

BALANCE_PAUSE = timedelta(seconds=1)
"""Between two balance events of one wallet."""
WALLET_BACKLOG_MAX = 100
"""Balance events of one wallet that wait for one endpoint; above, the oldest give way to the newest."""

_LISTENERS = """SELECT webhook_id, merchant_id FROM webhook WHERE merchant_id = ANY($1::text[]) AND status = 'active'
  AND (events IS NULL OR events ? $2) ORDER BY webhook_id"""
# The facts travel as JSON text, so that the numbers in a merchant's metadata keep their digits.
_FACTS = """jsonb_build_object('connection_id', c.connection_id, 'reference_id', c.reference_id, 'status', c.status,
  'contact', c.contact, 'metadata', c.metadata,
  'subscription', (SELECT jsonb_build_object('subscription_id', s.subscription_id, 'plan_id', s.plan_id, 'name', s.terms->>'name',
    'status', 'active') FROM subscription s WHERE s.connection_id = c.connection_id AND s.status <> 'cancelled'),
  'created_at', to_char(c.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))::text AS facts"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """A row to be."""

    event_id: str
    merchant_id: str
    event_type: str
    subject_id: str | None
    wallet_id: str | None
    sequence: int
    balance_nanos: int | None
    customer: bytes | None
    facts: Mapping[str, Any]


async def add_event(
    db: Any,
    *,
    merchant_id: str,
    event_type: str,
    at: datetime,
    connection_id: str | None = None,
    subject_id: str | None = None,
    facts: Mapping[str, Any] | None = None,
    transition: str | None = None,
) -> str | None:
    """Write an event and its deliveries with the caller's open transaction `db`; its id, None when nobody is to be told.

    With `connection_id` the event carries that customer as it stands in this transaction and is ordered with its wallet's other
    events. `facts` (JSON values) are added to the top of its `data`. `transition` names what happened, such as
    "sub_1:cancelled": the same type with the same transition is told once, however often it is noticed.
    """
    assert event_type in EVENT_TYPES, f"{event_type} is not in domain/webhooks.py EVENT_TYPES"
    listeners = await db.fetch(_LISTENERS, [merchant_id], event_type)
    if not listeners or not await _is_new(db, merchant_id, event_type, transition):
        return None
    wallet_id, sequence, balance, customer = None, 0, None, None
    if connection_id is not None:
        row = await db.fetchrow(
            f"""SELECT c.wallet_id, coalesce(e.wseq, 0) AS wseq, coalesce(e.balance_nanos, 0) AS balance_nanos, {_FACTS}
            FROM connection c LEFT JOIN LATERAL (SELECT wseq, balance_nanos FROM ledger_entry
              WHERE wallet_id = c.wallet_id ORDER BY wseq DESC LIMIT 1) e ON true WHERE c.connection_id = $1""",
            connection_id,
        )
        assert row is not None, "an event is about a connection that exists"
        wallet_id, sequence, balance = row["wallet_id"], row["wseq"], row["balance_nanos"]
        customer = row["facts"].encode()
    event = _Event(
        event_id=new_id("evt"),
        merchant_id=merchant_id,
        event_type=event_type,
        subject_id=subject_id or connection_id,
        wallet_id=wallet_id,
        sequence=sequence,
        balance_nanos=balance,
        customer=customer,
        facts=facts or {},
    )
    await _write(db, [(event, [row["webhook_id"] for row in listeners])], at)
    return event.event_id


async def _is_new(db: Any, merchant_id: str, event_type: str, transition: str | None) -> bool:
    if transition is None:
        return True
    done = await db.execute(
        "INSERT INTO event_once VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", merchant_id, event_type, transition
    )
    return str(done).endswith(" 1")


async def note_balances(db: Any, entries: Sequence[OutboxEntry]) -> None:
    """Mark the last balances of these ledger entries as news, in the flusher's transaction. Wallets in one order: no deadlock."""
    watching = {
        row["merchant_id"]
        for row in await db.fetch(
            "SELECT DISTINCT merchant_id FROM webhook WHERE status = 'active' AND (events IS NULL OR events ? $1)", BALANCE_UPDATED
        )
    }
    if not watching:
        return
    last: dict[str, OutboxEntry] = {}
    for entry in entries:
        if entry.row["merchant_id"] in watching and (entry.wallet_id not in last or last[entry.wallet_id].wseq < entry.wseq):
            last[entry.wallet_id] = entry
    news = [last[wallet_id] for wallet_id in sorted(last)]
    await db.execute(
        """INSERT INTO balance_news
        SELECT n.wallet_id, n.merchant_id, n.wseq, n.balance_nanos, true, 'epoch'
        FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) AS n (wallet_id, merchant_id, wseq, balance_nanos)
        JOIN connection c ON c.wallet_id = n.wallet_id AND c.status <> 'deleted' ORDER BY n.wallet_id
        ON CONFLICT (wallet_id) DO UPDATE SET wseq = EXCLUDED.wseq, balance_nanos = EXCLUDED.balance_nanos, is_due = true
        WHERE balance_news.wseq < EXCLUDED.wseq""",
        [entry.wallet_id for entry in news],
        [entry.row["merchant_id"] for entry in news],
        [entry.wseq for entry in news],
        [entry.balance_nanos for entry in news],
    )


async def emit_balances(db: Any, now: datetime, limit: int) -> int:
    """Turn marked balances into events with the open transaction `db`; how many wallets were looked at.

    The first change of a wallet is told at once, those of the following second together at its end.
    """
    due = await db.fetch(
        """SELECT wallet_id, merchant_id, wseq, balance_nanos FROM balance_news WHERE is_due AND not_before <= $1
        ORDER BY not_before LIMIT $2 FOR UPDATE SKIP LOCKED""",
        now, limit,
    )  # fmt: skip
    if not due:
        return 0
    listeners: dict[str, list[str]] = {}
    for row in await db.fetch(_LISTENERS, sorted({row["merchant_id"] for row in due}), BALANCE_UPDATED):
        listeners.setdefault(row["merchant_id"], []).append(row["webhook_id"])
    wallets = [row["wallet_id"] for row in due]
    customers = {
        row["wallet_id"]: row
        for row in await db.fetch(
            f"SELECT c.connection_id, c.wallet_id, {_FACTS} FROM connection c"
            " WHERE c.wallet_id = ANY($1::text[]) AND c.status <> 'deleted'",
            wallets,
        )
    }
    made = []
    for row in due:
        customer = customers.get(row["wallet_id"])
        if customer is None or row["merchant_id"] not in listeners:
            continue  # deleted meanwhile, or nobody listens any more
        event = _Event(
            event_id=new_id("evt"),
            merchant_id=row["merchant_id"],
            event_type=BALANCE_UPDATED,
            subject_id=customer["connection_id"],
            wallet_id=row["wallet_id"],
            sequence=row["wseq"],
            balance_nanos=row["balance_nanos"],
            customer=customer["facts"].encode(),
            facts={},
        )
        made.append((event, listeners[row["merchant_id"]]))
    await _write(db, made, now)
    await _bound_backlog(db, [event.wallet_id for event, _ in made], now)
    await db.execute(
        "UPDATE balance_news SET is_due = false, not_before = $2 WHERE wallet_id = ANY($1::text[])", wallets, now + BALANCE_PAUSE
    )
    return len(due)


async def _write(db: Any, events: Sequence[tuple[_Event, Sequence[str]]], at: datetime) -> None:
    """Events and one delivery of each to each of its webhooks, due at once by whichever clock the sender goes."""
    if not events:
        return
    rows = await db.fetch(
        """INSERT INTO event
          (event_id, merchant_id, type, subject_id, wallet_id, sequence, balance_nanos, customer, facts, created_at)
        SELECT *, $10 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
          $8::jsonb[], $9::jsonb[]) RETURNING event_id, ordinal""",
        *([getattr(event, name) for event, _ in events] for name in _Event.__slots__),
        at,
    )
    ordinals = {row["event_id"]: row["ordinal"] for row in rows}
    await db.execute(
        """INSERT INTO delivery (delivery_id, event_id, webhook_id, wallet_id, ordinal, next_try_at, created_at)
        SELECT *, 'epoch', $6 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])""",
        *zip(
            *(
                (new_id("dlv"), event.event_id, webhook_id, event.wallet_id, ordinals[event.event_id])
                for event, webhook_ids in events
                for webhook_id in webhook_ids
            ),
            strict=True,
        ),
        at,
    )


async def _bound_backlog(db: Any, wallets: Sequence[str | None], now: datetime) -> None:
    """An endpoint that accepts nothing must not collect an event a second for three days: its oldest balances give way."""
    await db.execute(
        """UPDATE delivery SET state = 'failed', last_error = 'superseded by newer balances', ended_at = $2 FROM (
          SELECT d.delivery_id, row_number() OVER (PARTITION BY d.webhook_id, d.wallet_id ORDER BY d.ordinal DESC) AS age
          FROM delivery d JOIN event e USING (event_id)
          WHERE d.wallet_id = ANY($1::text[]) AND d.state = 'pending' AND e.type = $3) AS waiting
        WHERE delivery.delivery_id = waiting.delivery_id AND waiting.age > $4""",
        wallets, now, BALANCE_UPDATED, WALLET_BACKLOG_MAX,
    )  # fmt: skip
