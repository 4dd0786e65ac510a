"""Typed calls of the money script: reserve, settle, lease, credit, renew, adjust, expire, open a wallet.

One operation each, coalesced by HotRedis.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, NoReturn
from zlib import crc32

from lava_proxy import tasks
from lava_proxy.domain.errors import (
    CallerError,
    Conflict,
    InsufficientFunds,
    LavaError,
    LimitExceeded,
    NotFound,
    StoreError,
)
from lava_proxy.domain.limits import Scope, cycle_end, cycle_id
from lava_proxy.domain.money import AMOUNT_NANOS_MAX, format_usd
from lava_proxy.stores.hot_redis import Ambiguous, HotRedis, NotSent, Reply

# Billing partitions, fixed for the life of an installation: wallets never move between them. 64 lets a Redis Cluster grow to
# 64 nodes while the flusher reads all of them in one command; one outbox stream and one expiry index each.
PARTITIONS = 64

POSITION_MAX = 2**53 - 1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SettleMode = Literal["held", "late", "due"]
PlanClass = Literal["cycle", "bundle"]


def partition_of(wallet_id: str) -> int:
    """The billing partition of a wallet."""
    return crc32(wallet_id.encode()) % PARTITIONS


def tag(partition: int) -> str:
    """The hash tag that keeps a partition's keys in one Redis Cluster slot."""
    return f"{{p{partition:04d}}}"


@lru_cache(maxsize=65536)
def _wallet_keys(wallet_id: str) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """m, x, o, w and the prefix of h."""
    t = tag(partition_of(wallet_id))
    return f"{t}:m".encode(), f"{t}:x".encode(), f"{t}:o".encode(), f"{t}:w:{wallet_id}".encode(), f"{t}:h:".encode()


def _keys(wallet_id: str, record: str) -> list[bytes]:
    m, x, o, w, h = _wallet_keys(wallet_id)
    return [m, x, o, w, h + record.encode()]


def report_record(merchant_id: str, request_key: str) -> str:
    """The record name of a caller-chosen request id: scoped by merchant, bounded in size."""
    return hashlib.blake2b(f"{merchant_id}\0{request_key}".encode(), digest_size=16).hexdigest()


def report_key(record: str) -> bytes:
    """Where a report's record is: placed by itself alone, so that one id finds it whichever wallet pays."""
    return f"{tag(int(record[:8], 16) % PARTITIONS)}:r:{record}".encode()


def scope_key(wallet_id: str, scope_id: str) -> str:
    """Where a scope's counters are: in the partition of the wallet that its calls draw on."""
    return f"{tag(partition_of(wallet_id))}:l:{scope_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeUse:
    """A call as one scope counts it: at most so many tokens, at a moment of business time."""

    scope: Scope
    tokens: int
    at: datetime

    def arguments(self, wallet_id: str) -> list[bytes]:
        """As the script takes them."""
        limits = self.scope.limits
        return [
            scope_key(wallet_id, self.scope.scope_id).encode(),
            _optional(limits.requests_per_minute),
            _optional(limits.request_burst),
            _optional(limits.tokens_per_minute),
            _optional(limits.concurrent_calls),
            cycle_id(limits.request_cycle, self.at).encode(),
            _optional(limits.request_count),
            cycle_id(limits.spend_cycle, self.at).encode(),
            _optional(limits.spend_nanos),
            b"%d" % self.tokens,
            b"%d" % _milliseconds(self.at),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A caller's idempotency key: `digest` is scoped and hashed; kept for `keep_ms` from the reserve on."""

    digest: str
    keep_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """What may be charged once, whichever call sees it: its digest, and the row of a call that comes second.

    Redis knows it for `keep_ms` and per wallet; the ledger, by the row's `once_key`, for ever and per merchant.
    """

    digest: str
    keep_ms: int
    free_row: bytes


@dataclass(frozen=True, slots=True)
class Held:
    """A hold as Redis keeps it: how much from each pot, and the tier counter at that moment."""

    plan_nanos: int
    funds_nanos: int
    position: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The end of a hold. `repeated`: it had ended before, with `charge_nanos`. `seen`: another call was charged for the same."""

    charge_nanos: int
    balance_nanos: int = 0
    position: int = 0
    flags: str = ""
    wseq: int = 0
    repeated: bool = False
    seen: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """Not settled: the tier counter had moved to `position`; price again and retry."""

    position: int


@dataclass(slots=True, kw_only=True)  # not frozen: made for every report
class Report:
    """A debit for usage that has happened, priced for tier counters lo..hi. `record`: of its caller's id; `fingerprint`: of what
    it says."""

    wallet_id: str
    request_id: str
    record: str
    fingerprint: str
    charge_nanos: int
    units: int
    tier_field: str
    position_lo: int
    position_hi: int
    row: bytes
    at: datetime  # business time: what has expired by then is not used
    overdraft_nanos: int = 0
    plan_linked: bool = False


@dataclass(slots=True)
class Reported:
    """A report's debit as Redis has it. Not `fresh`: it was made before; `row` is its outbox row while that is not in Postgres."""

    request_id: str
    charge_nanos: int
    position: int
    flags: str
    at_ms: int
    fresh: bool = True
    row: bytes = b""


_ReportAnswer = Reported | Moved | LavaError
_UNANSWERED = StoreError("This report has no answer.")  # until it has one
_GROUP_MAX = 64  # reports of an operation: what is read for a wallet is shared by enough of them


class ReportConflict(Conflict):
    """The id of a report was used before for something else; nothing was changed (409)."""

    code = "request_id_conflict"

    def __init__(self, detail: str = "") -> None:
        super().__init__(
            f"This request_id was used before {detail or 'with other content'}; nothing was changed. "
            "Send the same content again, or use a new request_id for a new request."
        )


class BalanceStore:
    """The atomic operations on wallets. Raises CallerError for refusals, StoreError when Redis cannot answer."""

    def __init__(self, redis: HotRedis) -> None:
        self._redis = redis
        self._reports: list[tuple[Sequence[Report], int, asyncio.Future[list[_ReportAnswer]]]] = []

    @property
    def is_ready(self) -> bool:
        return self._redis.is_ready

    async def reserve(
        self,
        wallet_id: str,
        request_id: str,
        amount_nanos: int,
        *,
        row: bytes,
        lease_ms: int,
        fingerprint: str = "",
        overdraft_nanos: int = 0,
        plan_linked: bool = False,
        tier_field: str = "",
        scopes: tuple[ScopeUse, ...] = (),
        claim: Claim | None = None,
        at: datetime | None = None,
    ) -> Held:
        """Hold an amount, or raise InsufficientFunds, LimitExceeded, NotFound, Conflict; then nothing was changed.

        `at`: business time; lots that have expired by then are ended first, also when the hold is refused.
        With a claim, only the first call holds; the others raise AlreadyCalled.
        """
        if amount_nanos > AMOUNT_NANOS_MAX:
            raise InsufficientFunds("The most this call can cost is above what a wallet can hold ($9,000,000).")
        args = [b"V"] if claim is None else [b"W", claim.digest.encode(), b"%d" % claim.keep_ms]
        args += [
            request_id.encode(),
            b"%d" % amount_nanos,
            fingerprint.encode(),
            b"%d" % lease_ms,
            b"%d" % overdraft_nanos,
            b"1" if plan_linked else b"0",
            tier_field.encode(),
            row,
            _moment(at),
            b"%d" % len(scopes),
        ]
        for use in scopes:
            args += use.arguments(wallet_id)
        reply = await self._redis.run(_keys(wallet_id, request_id), args)
        code = reply[0]
        if code in (b"H", b"=H"):
            return Held(int(reply[1]), int(reply[2]), int(reply[3]))
        if code == b"E402":
            raise NotCovered(amount_nanos, int(reply[1]), int(reply[2]))
        if code == b"E411":
            raise AlreadyCalled(reply[1].decode(), is_running=reply[2] == b"H", charge_nanos=int(reply[3]) if reply[3] else None)
        if code == b"E429":
            raise limit_exceeded(scopes[int(reply[1])], amount_nanos, reply)
        _refuse(reply)

    async def settle(
        self,
        wallet_id: str,
        request_id: str,
        charge_nanos: int,
        *,
        row: bytes,
        keep_ms: int,
        units: int = 0,
        tier_field: str = "",
        position_lo: int = 0,
        position_hi: int = POSITION_MAX,
        mode: SettleMode = "late",
        record: str | None = None,
        fingerprint: str = "",
        overdraft_nanos: int = 0,
        plan_linked: bool = False,
        tokens: int | None = None,
        once: Once | None = None,
        at: datetime | None = None,
    ) -> Settled | Moved:
        """End a hold (or debit directly, by mode) with a charge priced for tier positions lo..hi; idempotent by id.

        `tokens`: what the call used, for token limits; None: as much as it had reserved. `once`: charged only if no other call was.
        `at`: business time, so that what has expired by then and was not held for this call is not used.
        """
        args = [] if once is None else [b"B", once.digest.encode(), b"%d" % once.keep_ms, once.free_row]
        args += [
            *([b"S"] if once is None else []),
            request_id.encode(),
            b"%d" % charge_nanos,
            b"%d" % units,
            tier_field.encode(),
            b"%d" % position_lo,
            b"%d" % position_hi,
            fingerprint.encode(),
            row,
            b"%d" % keep_ms,
            mode.encode(),
            b"%d" % overdraft_nanos,
            b"1" if plan_linked else b"0",
            _optional(tokens),
            _moment(at),
        ]
        reply = await self._redis.run(_keys(wallet_id, record or request_id), args)
        code = reply[0]
        if code == b"S":
            return Settled(charge_nanos, int(reply[1]), int(reply[2]), reply[3].decode(), int(reply[4]))
        if code == b"F":
            return Settled(0, int(reply[1]), int(reply[2]), reply[3].decode(), int(reply[4]), seen=True)
        if code == b"=S":
            return Settled(int(reply[1]), repeated=True)
        if code == b"RETRY":
            return Moved(int(reply[1]))
        _refuse(reply)

    async def report(self, reports: Sequence[Report], keep_ms: int) -> list[Reported | Moved | LavaError]:
        """Debit each report once; an answer a report, in order. One that is refused does not hurt the others.

        All that is asked for in one turn of the loop is sent at once, the reports of a wallet as one operation.
        Moved: price that one again. CallerError: refused, nothing changed. StoreError: Redis cannot answer; the same report may be
        sent again, also after Ambiguous.
        """
        loop = asyncio.get_running_loop()
        answers: asyncio.Future[list[_ReportAnswer]] = loop.create_future()
        if not self._reports:
            loop.call_soon(self._send_reports)
        self._reports.append((reports, keep_ms, answers))
        return await answers

    def _send_reports(self) -> None:
        waiting, self._reports = self._reports, []
        tasks.start("exchange-debits", self._sent(waiting))  # drained with the exchanges that wait for it

    async def _sent(self, waiting: list[tuple[Sequence[Report], int, asyncio.Future[list[_ReportAnswer]]]]) -> None:
        groups: dict[tuple[Any, ...], list[tuple[Report, list[_ReportAnswer], int]]] = {}
        answers: list[list[_ReportAnswer]] = []
        for reports, keep_ms, _ in waiting:
            found: list[_ReportAnswer] = [_UNANSWERED] * len(reports)
            answers.append(found)
            for index, report in enumerate(reports):
                key = (report.wallet_id, report.tier_field, report.overdraft_nanos, report.plan_linked, keep_ms)
                group = groups.get(key)
                if group is None:
                    group = groups[key] = []
                group.append((report, found, index))
        try:
            parts = [
                (key[4], group[start : start + _GROUP_MAX])
                for key, group in groups.items()
                for start in range(0, len(group), _GROUP_MAX)
            ]
            replies = await self._redis.run_all([_reports_operation([one[0] for one in part], keep) for keep, part in parts])
            for (_, part), reply in zip(parts, replies, strict=True):
                _hand_out(part, reply)
        except BaseException as error:
            for _, _, future in waiting:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else Ambiguous("The gateway stops."))
            raise
        for (_, _, future), found in zip(waiting, answers, strict=True):
            if not future.done():
                future.set_result(found)

    async def lease(self, wallet_id: str, request_id: str, *, lease_ms: int, row: bytes) -> bool:
        """Move a hold's lease on and keep its checkpoint; False when the hold has ended."""
        reply = await self._redis.run(_keys(wallet_id, request_id), [b"L", request_id.encode(), b"%d" % lease_ms, row])
        return bool(reply[0] == b"L")

    async def extend(
        self, wallet_id: str, request_id: str, target_nanos: int, *, at: datetime | None = None
    ) -> tuple[int, int] | None:
        """Raise an open hold to a target, by the reserve's rules: (plan, funds) held now; None when the hold has ended.

        All or nothing; a repeat is harmless. Raises NotCovered (with what can be spent beyond what is held) or StoreError.
        """
        args = [b"E", request_id.encode(), b"%d" % target_nanos, _moment(at)]
        reply = await self._redis.run(_keys(wallet_id, request_id), args)
        code = reply[0]
        if code in (b"E", b"=E"):
            return int(reply[1]), int(reply[2])
        if code == b"E404":
            return None
        if code == b"E402":
            raise NotCovered(target_nanos, int(reply[1]), int(reply[2]))
        _refuse(reply)

    async def credit(self, wallet_id: str, credit_id: str, amount_nanos: int, *, lot_key: str, row: bytes, keep_ms: int) -> bool:
        """Add a credit once; False when this id was credited before."""
        args = [b"C", credit_id.encode(), b"%d" % amount_nanos, lot_key.encode(), row, b"%d" % keep_ms]
        reply = await self._redis.run(_keys(wallet_id, credit_id), args)
        if reply[0] in (b"C", b"=C"):
            return bool(reply[0] == b"C")
        _refuse(reply)

    async def undo(
        self,
        wallet_id: str,
        credit_id: str,
        amount_nanos: int,
        *,
        lot_key: str,
        tier_field: str,
        units: int,
        row: bytes,
        keep_ms: int,
    ) -> bool:
        """Give a debit back once, its money as a credit and its units to the tier counter; False when repeated."""
        args = [b"U", credit_id.encode(), b"%d" % amount_nanos, lot_key.encode(), row, b"%d" % keep_ms]
        args += [tier_field.encode(), b"%d" % units]
        reply = await self._redis.run(_keys(wallet_id, credit_id), args)
        if reply[0] in (b"C", b"=C"):
            return bool(reply[0] == b"C")
        _refuse(reply)

    async def left_of_lot(self, wallet_id: str, lot_key: str) -> int:
        """What of a lot has not been used and is used by no open call, in nanos; 0 for a lot that is not there."""
        reply = await self._redis.run(_keys(wallet_id, ""), [b"F", lot_key.encode()])
        if reply[0] == b"F":
            return int(reply[1])
        _refuse(reply)

    async def renew(
        self,
        wallet_id: str,
        event_id: str,
        *,
        ends: frozenset[PlanClass],
        lot_key: str | None,
        grant_nanos: int,
        row: bytes,
        keep_ms: int,
        months_before: str = "",
        drop_cycles: Sequence[str] = (),
    ) -> bool:
        """Begin a cycle once, as one event: end what remains of plan lots of some classes and add the new lot; False when repeated.

        What open calls use of the ended lots stays theirs, and what they leave ends with them. `months_before` ("2026-10") and
        `drop_cycles` name tier counters that are over; a cycle whose calls may still be open is not over.
        """
        assert not any("," in cycle or ":" in cycle for cycle in drop_cycles)
        args = [
            b"N",
            event_id.encode(),
            ends_text(ends).encode(),
            (lot_key or "").encode(),
            b"%d" % grant_nanos,
            months_before.encode(),
            ",".join(drop_cycles).encode(),
            row,
            b"%d" % keep_ms,
        ]
        reply = await self._redis.run(_keys(wallet_id, event_id), args)
        if reply[0] in (b"N", b"=N"):
            return bool(reply[0] == b"N")
        _refuse(reply)

    async def adjust(
        self, wallet_id: str, event_id: str, delta_nanos: int, *, lot_key: str | None, row: bytes, keep_ms: int
    ) -> bool:
        """Change a wallet by a signed amount once; False when repeated. Above zero it needs a lot key, and is like a credit.

        Below zero it takes from the named lot first, then from funds, and then leaves debt: a refund or clawback is never refused.
        """
        args = [b"A", event_id.encode(), b"%d" % delta_nanos, (lot_key or "").encode(), row, b"%d" % keep_ms]
        reply = await self._redis.run(_keys(wallet_id, event_id), args)
        if reply[0] in (b"A", b"=A"):
            return bool(reply[0] == b"A")
        _refuse(reply)

    async def expire(self, wallet_id: str, at: datetime, *, row: bytes) -> int:
        """End the lots that have expired by a moment of business time; how many. `row` names the merchant."""
        reply = await self._redis.run(_keys(wallet_id, "-"), [b"X", _moment(at), row])
        if reply[0] == b"X":
            return int(reply[1])
        _refuse(reply)

    async def open_wallet(self, wallet_id: str) -> None:
        """Make the wallet at zero unless it exists."""
        reply = await self._redis.run(_keys(wallet_id, "-"), [b"O"])
        if reply[0] not in (b"O", b"=O"):
            _refuse(reply)


def _reports_operation(reports: Sequence[Report], keep_ms: int) -> tuple[list[bytes], list[bytes]]:
    """Of one wallet, tier counter and overdraft line."""
    first = reports[0]
    keys = [*_wallet_keys(first.wallet_id)[:4]]
    words = [
        b"G",
        b"%d" % len(reports),
        first.tier_field.encode(),
        b"%d" % first.overdraft_nanos,
        b"1" if first.plan_linked else b"0",
        _moment(reports[-1].at),
        b"%d" % keep_ms,
    ]
    for report in reports:
        keys.append(report_key(report.record))
        words += (
            report.request_id.encode(),
            b"%d" % report.charge_nanos,
            b"%d" % report.units,
            b"%d" % report.position_lo,
            b"%d" % report.position_hi,
            report.fingerprint.encode(),
            report.row,
        )
    return keys, words


def _hand_out(part: Sequence[tuple[Report, list[_ReportAnswer], int]], reply: Reply | StoreError) -> None:
    """The answers of one operation to where each is waited for."""
    if isinstance(reply, StoreError) or reply[0] == b"E500":
        failed = reply if isinstance(reply, StoreError) else _refusal(reply)
        for _, answers, index in part:
            answers[index] = failed
        return
    at_ms = int(reply[0])
    for (report, answers, index), said in zip(part, reply[1:], strict=True):
        answers[index] = _reported(report, said, at_ms)


def _reported(report: Report, said: Any, at_ms: int) -> _ReportAnswer:
    """`said`: bytes of a debit made now, else an array as of other operations."""
    if type(said) is bytes:
        position, _, flags = said.partition(b"|")
        return Reported(report.request_id, report.charge_nanos, int(position), flags.decode(), at_ms)
    code = said[0]
    if code == b"=S":
        first_id = said[2].decode()
        # Our own, when the answer to the first attempt was lost: nobody has seen it yet.
        fresh = first_id == report.request_id
        return Reported(first_id, int(said[1]), int(said[3]), said[4].decode(), int(said[5]), fresh, said[6])
    if code == b"RETRY":
        return Moved(int(said[1]))
    if code == b"E409":
        return ReportConflict()
    return _refusal(said)


def _refusal(reply: Reply) -> LavaError:
    try:
        _refuse(reply)
    except LavaError as error:
        return error


class AlreadyCalled(Conflict):
    """The idempotency key belongs to another call: its id, whether it still runs, and its charge where it is still known."""

    code = "idempotency_key_used"

    def __init__(self, first_id: str, *, is_running: bool, charge_nanos: int | None) -> None:
        self.first_id = first_id
        self.first_status = "running" if is_running else "ended"
        self.charge = None if charge_nanos is None else format_usd(charge_nanos, 9)
        end = f", charged ${self.charge}" if self.charge is not None else ""
        super().__init__(
            f"This Idempotency-Key was used by {first_id} ({self.first_status}{end}). Answers are not kept: "
            "it cannot be repeated. Use a new key for a new call."
        )


class NotCovered(InsufficientFunds):
    """A reserve above what can be spent, with the figures."""

    def __init__(self, needed_nanos: int, spendable_nanos: int, held_nanos: int) -> None:
        super().__init__(
            f"The balance does not cover this call: it can cost up to ${format_usd(needed_nanos, 9)}, "
            f"${format_usd(max(spendable_nanos, 0), 9)} can be spent now. Add funds, or ask for less (a lower max_tokens)."
        )
        self.held_nanos = held_nanos
        self.spendable_nanos = max(spendable_nanos, 0)


_KINDS = {
    b"n": ("concurrency_limit_exceeded", "{limit} calls at once are allowed; one of them must end first."),
    b"r": ("rate_limit_exceeded", "{limit} calls a minute are allowed."),
    b"c": ("request_limit_exceeded", "{limit} calls a cycle are allowed, and all of them are used."),
    b"t": ("token_limit_exceeded", "{limit} tokens a minute are allowed, {remaining} are left, and this call can use {tokens}."),
    b"s": (
        "spend_limit_exceeded",
        "${limit_usd} may be spent a cycle, ${remaining_usd} are left, and this call can cost ${want_usd}.",
    ),
}


def limit_exceeded(use: ScopeUse, want_nanos: int, reply: Reply) -> LimitExceeded:
    """The script's refusal by a scope as an error: 402 for spend, else 429, with what the caller's headers say."""
    kind, limit, remaining, wait, now_ms = reply[2], int(reply[3]), int(reply[4]), reply[5], int(reply[6])
    limits = use.scope.limits
    retry_after_s = reset_s = None
    if wait:
        retry_after_s = max(1, -(-int(wait) // 1000))
        reset_s = -(-(now_ms + int(wait)) // 1000)
    elif kind in (b"c", b"s"):
        end = cycle_end(limits.request_cycle if kind == b"c" else limits.spend_cycle, use.at)
        if end is not None:
            reset_s = _milliseconds(end) // 1000
            retry_after_s = max(1, reset_s - _milliseconds(use.at) // 1000)
    code, sentence = _KINDS[kind]
    facts = {
        "limit": limit, "remaining": remaining, "tokens": use.tokens, "limit_usd": format_usd(limit, 9),
        "remaining_usd": format_usd(remaining, 9), "want_usd": format_usd(want_nanos, 9),
    }  # fmt: skip
    owner = "spend key" if use.scope.scope_id.startswith("spk_") else "customer"
    return LimitExceeded(
        f"A limit of this {owner} is reached: {sentence.format(**facts)}",
        code=code,
        status=402 if kind == b"s" else 429,
        limit=limit,
        remaining=remaining,
        retry_after_s=retry_after_s,
        reset_s=reset_s,
    )


def _optional(number: int | None) -> bytes:
    return b"" if number is None else b"%d" % number


def _moment(at: datetime | None) -> bytes:
    return b"" if at is None else b"%d" % _milliseconds(at)


def _milliseconds(at: datetime) -> int:
    delta = at - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


# Burn order: what a cycle grants, then bundles, then funds. The class of a plan lot is told by its priority.
CYCLE_PRIORITY, BUNDLE_PRIORITY, FUNDS_PRIORITY = 400, 450, 500
NEVER_S = 99_999_999_999  # expires_s of a lot that does not expire


def ends_text(ends: frozenset[PlanClass]) -> str:
    """The classes that a renewal ends, as the script and the ledger write them: "", "c", "b" or "cb"."""
    return "".join(name[0] for name in ("cycle", "bundle") if name in ends)


def lot_key(
    pot: Literal["plan", "funds"], lot_id: str, created_ms: int, *, priority: int = FUNDS_PRIORITY, expires_s: int = 0
) -> str:
    """A lot's place in the burn order (pot, priority, expiry, age, id) as a string that sorts so; expires_s 0 = never."""
    assert "," not in lot_id and "=" not in lot_id and ":" not in lot_id
    return f"{pot[0]}:{priority:03d}:{expires_s or NEVER_S:011d}:{created_ms:014d}:{lot_id}"


def _refuse(reply: Reply) -> NoReturn:
    code = reply[0]
    if code == b"E503":
        raise StoreError("Balances are being recovered; nothing was charged. Try again in a few seconds.", code="recovering")
    if code == b"E404":
        raise NotFound("This wallet is not known to the billing store.", code="wallet_not_found")
    if code == b"E409":
        raise Conflict("This id was used before with other content; nothing was changed.")
    if code == b"E410":
        raise Conflict("This call has already ended.")
    if code == b"E425":
        raise Conflict("The hold's lease has not ended: its owner lives.", code="lease_not_ended")
    if code == b"E400":
        raise CallerError("An amount is out of bounds (0 to $9,000,000).", code="amount_out_of_bounds")
    if code == b"E500" and reply[1].startswith(b"OOM"):
        raise NotSent("The billing store is out of memory; nothing was charged.", code="billing_store_full")
    if code == b"E500":
        raise Ambiguous(f"The money script failed: {reply[1][:200].decode('utf-8', 'replace')}")
    raise StoreError(f"Unexpected answer of the money script: {code!r}")
