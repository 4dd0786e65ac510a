"""The outbox streams and the wallets' keys as the workers and the audit see them, through redis-py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.balance_store import PARTITIONS, partition_of, scope_key, tag
from lava_proxy.stores.hot_redis import VERIFIED_KEY
from lava_proxy.stores.report_rows import row_of

_REFUSED_KEY = "lava:refused"
_OLD_FACTS = 12


@dataclass(slots=True, kw_only=True)  # not frozen: made for every row
class OutboxEntry:
    """One change of a wallet as the money script wrote it."""

    part: int
    epoch: int
    pseq: int
    kind: str  # a letter of domain/ledger.KINDS
    request_id: str
    wallet_id: str
    wseq: int
    amount_nanos: int
    balance_nanos: int
    plan_nanos: int
    funds_nanos: int
    position: int
    flags: str
    debt_nanos: int
    at_ms: int
    raw: bytes  # the row as it was written; see report_rows.py
    plan_total_nanos: int | None = None  # the plan pot afterwards; None in entries that were written before there were plans
    pinned_nanos: int = 0
    opened_wseq: int | None = None
    _row: dict[str, Any] | None = None

    @property
    def row(self) -> dict[str, Any]:
        """The row, read when it is asked for."""
        if self._row is None:
            self._row = row_of(self.raw)
        return self._row

    def with_row(self, row: dict[str, Any]) -> OutboxEntry:
        """The same change with another row."""
        return replace(self, raw=b"", _row=row)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletState:
    """A wallet's hash."""

    wseq: int
    plan_available: int
    funds_available: int
    plan_held: int
    funds_held: int
    debt: int
    settled: int
    credited: int
    lots: dict[str, int]
    counters: dict[str, int]
    pins: dict[str, int] = field(default_factory=dict)  # the holds behind lots that have ended; see money.lua

    @property
    def balance_nanos(self) -> int:
        return self.plan_available + self.funds_available + self.plan_held + self.funds_held

    def at(self, now: datetime) -> WalletState:
        """The wallet without what has expired by a moment of business time and is not used by an open call, swept or not."""
        now_s = int(now.timestamp())
        plan = self._expired("p", self.plan_held, now_s)
        funds = self._expired("f", self.funds_held, now_s)
        if not plan and not funds:
            return self
        lots = {key: left - plan.get(key, 0) - funds.get(key, 0) for key, left in self.lots.items()}
        return replace(
            self,
            plan_available=self.plan_available - sum(plan.values()),
            funds_available=self.funds_available - sum(funds.values()),
            lots={key: left for key, left in lots.items() if left},
        )

    def _expired(self, pot: str, held: int, now_s: int) -> dict[str, int]:
        """Lot -> what a sweep would end of it, as the script's `covered` and `release` tell."""
        found, pinned = {}, 0
        for key in sorted(key for key in self.lots if key[0] == ("q" if pot == "p" else "g")):
            left = self.lots[key]
            if excess := max(0, min(left, pinned + left - self.pins.get(key, 0))):
                found[key] = excess
            pinned += left - excess
        free = held - pinned
        for key in sorted(key for key in self.lots if key[0] == pot):
            covered = max(0, min(free, self.lots[key]))
            free -= covered
            if int(key.split(":")[2]) <= now_s and self.lots[key] > covered:
                found[key] = self.lots[key] - covered
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenHold:
    """A hold's record and its lease end (None when it is not in the expiry index)."""

    request_id: str
    wallet_id: str
    plan_nanos: int
    funds_nanos: int
    lease_ms: int | None
    row: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """How the billing store does: has its present run been checked against Postgres, what waits, what is overdue."""

    is_verified: bool
    outbox_entries: int
    outbox_lag_ms: int  # age of the oldest entry
    holds_open: int
    hold_overdue_ms: int  # how long ago the oldest lease ended


def connect(redis_url: str, timeout_s: float = 5) -> Redis:
    """A redis-py client without hidden retries."""
    return Redis.from_url(
        redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), protocol=2
    )


class Outbox:
    """Reads and trims the outbox, reads wallets and holds, and runs recovery's writes."""

    def __init__(self, redis: Redis, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`clock`: business time."""
        self._clock = clock
        # redis-py's annotations allow text where this client, made without decode_responses, always answers bytes.
        client: Any = redis
        client.set_response_callback("XREAD", _as_it_came)
        self._redis = client

    async def read(self, marks: Mapping[int, tuple[int, int]], count: int, block_ms: int | None) -> list[OutboxEntry]:
        """Entries after the marks, oldest first within a partition; [] when there is none within block_ms."""
        streams = {f"{tag(part)}:o": f"{epoch}-{pseq}" for part, (epoch, pseq) in marks.items()}
        try:
            answer = await self._redis.xread(streams, count=count, block=block_ms)
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        found: list[OutboxEntry] = []
        for name, items in answer or []:
            part = int(name[2:6])
            for identifier, fields in items:
                epoch, _, pseq = identifier.partition(b"-")
                found.append(_made(part, int(epoch), int(pseq), fields[1], fields[3], fields[5] if len(fields) > 4 else None))
        return found

    async def trim(self, marks: Mapping[int, tuple[int, int]]) -> None:
        """Drop what has been committed: everything up to the marks. Raises StoreError when Redis cannot answer."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for part, (epoch, pseq) in marks.items():
                    pipe.xtrim(f"{tag(part)}:o", minid=f"{epoch}-{pseq + 1}", approximate=False)
                await pipe.execute()
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error

    async def length(self) -> int:
        """Entries not yet trimmed, over all partitions."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for part in range(PARTITIONS):
                pipe.xlen(f"{tag(part)}:o")
            return int(sum(await pipe.execute()))

    async def oldest_ms(self) -> int | None:
        """When the oldest entry was written; None when the outbox is empty."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for part in range(PARTITIONS):
                pipe.xrange(f"{tag(part)}:o", count=1)
            firsts = [_entry(f"{tag(part)}:o".encode(), *items[0]) for part, items in enumerate(await pipe.execute()) if items]
        return min((entry.at_ms for entry in firsts), default=None)

    async def ends(self) -> dict[int, tuple[int, int]]:
        """Partition -> (epoch, pseq) of its last entry, where there is one. Raises StoreError when Redis cannot answer."""
        return await self._edges("xrevrange", range(PARTITIONS))

    async def behind(self, ends: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """Those of `ends` that are not in Postgres yet. Raises StoreError when Redis cannot answer."""
        firsts = await self._edges("xrange", ends)
        return {part: end for part, end in ends.items() if part in firsts and firsts[part] <= end}

    async def _edges(self, command: Literal["xrange", "xrevrange"], parts: Iterable[int]) -> dict[int, tuple[int, int]]:
        asked = list(parts)
        if not asked:
            return {}
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for part in asked:
                    getattr(pipe, command)(f"{tag(part)}:o", count=1)
                answers = await pipe.execute()
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        return {part: _position(items[0][0]) for part, items in zip(asked, answers, strict=True) if items}

    async def now_ms(self) -> int:
        seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def run_id(self) -> str:
        return str((await self._redis.info("server"))["run_id"])

    async def verified_run(self) -> str | None:
        value = await self._redis.get(VERIFIED_KEY)
        return None if value is None else value.decode()

    async def set_verified(self, run_id: str) -> None:
        await self._redis.set(VERIFIED_KEY, run_id)

    async def metas(self) -> dict[int, tuple[str, int, int] | None]:
        """Partition -> (state, epoch, pseq), None where Redis has lost or never had it."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for part in range(PARTITIONS):
                pipe.hmget(f"{tag(part)}:m", ["state", "ep", "pseq"])
            rows = await pipe.execute()
        return {
            part: None if row[0] is None or row[1] is None or row[2] is None else (row[0].decode(), int(row[1]), int(row[2]))
            for part, row in enumerate(rows)
        }

    async def set_meta(self, part: int, state: str, epoch: int, pseq: int) -> None:
        await self._redis.hset(f"{tag(part)}:m", mapping={"state": state, "ep": epoch, "pseq": pseq})

    async def set_recovering(self, parts: Sequence[int]) -> None:
        """Stop every change in these partitions; their sequence and stream stay as they are. Those Redis lost stay lost."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for part in parts:
                pipe.hset(f"{tag(part)}:m", "state", "recovering")
            await pipe.execute()

    async def set_state(self, part: int, state: str) -> None:
        await self._redis.hset(f"{tag(part)}:m", "state", state)

    async def wallets(self, part: int, wallet_ids: list[str]) -> dict[str, WalletState | None]:
        """The wallets of one partition in one atomic read."""
        if not wallet_ids:
            return {}
        async with self._redis.pipeline(transaction=True) as pipe:
            for wallet_id in wallet_ids:
                pipe.hgetall(f"{tag(part)}:w:{wallet_id}")
            rows = await pipe.execute()
        return {wallet_id: _wallet(row) if row else None for wallet_id, row in zip(wallet_ids, rows, strict=True)}

    async def partition_snapshot(
        self, part: int, wallet_ids: list[str]
    ) -> tuple[dict[str, WalletState | None], list[OpenHold], list[str], list[OutboxEntry]]:
        """Wallets, open holds, ids in the expiry index without a hold record, and the unflushed outbox, of one moment.

        Atomic while serving: one MULTI for the wallets, index and stream; hold records are read by a script in it.
        """
        script = (
            "local out = {} local ids = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')"
            " for i = 1, #ids, 2 do out[#out + 1] = { ids[i], ids[i + 1], redis.call('GET', ARGV[1] .. ids[i]) or '' } end"
            " return out"
        )
        async with self._redis.pipeline(transaction=True) as pipe:
            for wallet_id in wallet_ids:
                pipe.hgetall(f"{tag(part)}:w:{wallet_id}")
            pipe.eval(script, 1, f"{tag(part)}:x", f"{tag(part)}:h:")
            pipe.xrange(f"{tag(part)}:o")
            *rows, indexed, stream = await pipe.execute()
        wallets = {wallet_id: _wallet(row) if row else None for wallet_id, row in zip(wallet_ids, rows, strict=True)}
        holds, dangling = [], []
        for identifier, lease, record in indexed:
            if record.startswith(b"H|"):
                holds.append(_hold(identifier.decode(), int(float(lease)), record))
            else:
                dangling.append(identifier.decode())
        return wallets, holds, dangling, [_entry(f"{tag(part)}:o".encode(), i, f) for i, f in stream]

    async def hold_records(self, part: int | None = None) -> dict[int, list[OpenHold]]:
        """Partition -> every open hold record, also those missing in the expiry index. One scan of the whole keyspace."""
        found: dict[int, list[OpenHold]] = {}
        cursor = 0
        while True:
            match = f"{'{p*}' if part is None else tag(part)}:h:*"
            cursor, keys = await self._redis.scan(cursor, match=match, count=2000)
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.getrange(key, 0, 0)
                kinds = await pipe.execute()
                open_keys = [key for key, kind in zip(keys, kinds, strict=True) if kind == b"H"]
                for key in open_keys:
                    pipe.get(key)
                records = await pipe.execute()
            for key, record in zip(open_keys, records, strict=True):
                if record is not None and record.startswith(b"H|"):
                    prefix, request_id = key.decode().split(":h:", 1)
                    found.setdefault(int(prefix[2:6]), []).append(_hold(request_id, None, record))
            if cursor == 0:
                return found

    async def is_open_unindexed(self, part: int, request_id: str) -> bool:
        """Is this hold open at this moment and missing in the expiry index?"""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.getrange(f"{tag(part)}:h:{request_id}", 0, 0)
            pipe.zscore(f"{tag(part)}:x", request_id)
            kind, lease = await pipe.execute()
        return bool(kind == b"H" and lease is None)

    async def due_holds(self, part: int, now_ms: int, limit: int) -> list[OpenHold]:
        """Holds whose lease ended."""
        ids = await self._redis.zrangebyscore(f"{tag(part)}:x", 0, now_ms, start=0, num=limit)
        holds = []
        for identifier in ids:
            record = await self._redis.get(f"{tag(part)}:h:{identifier.decode()}")
            if record is None or not record.startswith(b"H|"):
                await self._redis.zrem(f"{tag(part)}:x", identifier)
                continue
            holds.append(_hold(identifier.decode(), 0, record))
        return holds

    async def hold_figures(self) -> tuple[int, int | None]:
        """How many holds are open, and the earliest lease end in ms."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for part in range(PARTITIONS):
                pipe.zcard(f"{tag(part)}:x")
                pipe.zrange(f"{tag(part)}:x", 0, 0, withscores=True)
            rows = await pipe.execute()
        leases = [int(first[0][1]) for first in rows[1::2] if first]
        return int(sum(rows[0::2])), min(leases, default=None)

    async def write_wallet(self, part: int, wallet_id: str, fields: Mapping[str, str]) -> None:
        """Recovery's absolute write of a wallet; only while its partition is `recovering`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(f"{tag(part)}:w:{wallet_id}")
            pipe.hset(f"{tag(part)}:w:{wallet_id}", mapping=dict(fields))
            await pipe.execute()

    async def drop_holds(self, part: int) -> int:
        """Recovery: forget open holds (their calls settle late) and the flushed stream of an older epoch; how many holds."""
        holds = (await self.hold_records(part)).get(part, [])
        async with self._redis.pipeline(transaction=False) as pipe:
            for hold in holds:
                pipe.delete(f"{tag(part)}:h:{hold.request_id}", f"{tag(part)}:q:{hold.request_id}")
            pipe.delete(f"{tag(part)}:x", f"{tag(part)}:o")
            await pipe.execute()
        return len(holds)

    async def wallet_states(self, wallet_ids: Sequence[str]) -> dict[str, WalletState | None]:
        """Wallets of any partitions as they stand now; None for one that is missing or whose partition is being recovered.

        What has expired by business time counts as gone, whether it has been swept or not.
        Raises StoreError when Redis cannot answer.
        """
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for wallet_id in wallet_ids:
                    partition = tag(partition_of(wallet_id))
                    pipe.hget(f"{partition}:m", "state")
                    pipe.hgetall(f"{partition}:w:{wallet_id}")
                rows = await pipe.execute()
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        pairs, now = zip(wallet_ids, rows[0::2], rows[1::2], strict=True), self._clock()
        return {wallet_id: _wallet(row).at(now) if row and state == b"ready" else None for wallet_id, state, row in pairs}

    async def note_refused(self, needed: Mapping[str, int]) -> None:
        """Remember wallets that had a call refused for want of balance, each with the least that a call needed, in nanos."""
        try:
            await self._redis.zadd(_REFUSED_KEY, dict(needed), lt=True)
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error

    async def refused_wallets(self, limit: int) -> dict[str, int]:
        """Wallet -> what the least of its refused calls needed, in nanos."""
        try:
            found = await self._redis.zrange(_REFUSED_KEY, 0, limit - 1, withscores=True)
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        return {wallet_id.decode(): int(needed) for wallet_id, needed in found}

    async def forget_refused(self, wallet_ids: Sequence[str]) -> None:
        """What these wallets' refusals ask for has been written down."""
        try:
            await self._redis.zrem(_REFUSED_KEY, *wallet_ids)
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error

    async def scope_counters(self, scopes: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        """The counters (fields of money.lua's `l` hash) of each (wallet id, scope id); {} where nothing was ever counted."""
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for wallet_id, scope_id in scopes:
                    pipe.hgetall(scope_key(wallet_id, scope_id))
                rows = await pipe.execute()
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        return [{name.decode(): value.decode() for name, value in row.items()} for row in rows]

    async def write_scope(self, wallet_id: str, scope_id: str, fields: Mapping[str, str]) -> None:
        """Recovery's absolute write of a scope's counters; only while its partition is `recovering`."""
        await self._redis.hset(scope_key(wallet_id, scope_id), mapping=dict(fields))

    async def forget_scope(self, wallet_id: str, scope_id: str) -> None:
        """Drop the counters of a deleted scope; calls that are still open end without them."""
        try:
            await self._redis.delete(scope_key(wallet_id, scope_id))
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error

    async def vitals(self) -> Vitals:
        """What a health check shows. Raises StoreError when Redis cannot answer."""
        try:
            is_verified = await self.verified_run() == await self.run_id()
            oldest_ms, (holds_open, lease_ms) = await self.oldest_ms(), await self.hold_figures()
            entries, now_ms = await self.length(), await self.now_ms()
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        return Vitals(
            is_verified=is_verified,
            outbox_entries=entries,
            outbox_lag_ms=max(0, now_ms - oldest_ms) if oldest_ms is not None else 0,
            holds_open=holds_open,
            hold_overdue_ms=max(0, now_ms - lease_ms) if lease_ms is not None else 0,
        )


def _position(identifier: bytes) -> tuple[int, int]:
    epoch, pseq = identifier.split(b"-")
    return int(epoch), int(pseq)


def _entry(stream: bytes, identifier: bytes, fields: Mapping[bytes, bytes]) -> OutboxEntry:
    return _made(int(stream[2:6]), *_position(identifier), fields[b"s"], fields[b"r"], fields.get(b"e"))


def _made(part: int, epoch: int, pseq: int, facts: bytes, row: bytes, more: bytes | None) -> OutboxEntry:
    parts = facts.decode().split("|")
    if len(parts) == _OLD_FACTS:  # of an earlier release
        parts += more.decode().split("|") if more is not None else ("", "0", "")
    (
        kind, request_id, wallet_id, wseq, amount, balance, plan, funds, position, flags, debt, at_ms, plan_total, pinned, opened
    ) = parts  # fmt: skip
    return OutboxEntry(
        part=part, epoch=epoch, pseq=pseq, kind=kind, request_id=request_id, wallet_id=wallet_id,
        wseq=int(wseq), amount_nanos=int(amount), balance_nanos=int(balance), plan_nanos=int(plan), funds_nanos=int(funds),
        position=int(position), flags=flags, debt_nanos=int(debt), at_ms=int(at_ms), raw=row,
        plan_total_nanos=int(plan_total) if plan_total else None, pinned_nanos=int(pinned),
        opened_wseq=int(opened) if opened else None,
    )  # fmt: skip


def _as_it_came(answer: Any, **options: Any) -> Any:
    """XREAD's answer: an outbox is read thousands of rows at a time, and the client's own form of each costs as much as its row."""
    return answer


def _wallet(row: Mapping[bytes, bytes]) -> WalletState:
    lots = _numbers(row[b"lots"])
    return WalletState(
        wseq=int(row[b"seq"]), plan_available=int(row[b"pa"]), funds_available=int(row[b"fa"]), plan_held=int(row[b"ph"]),
        funds_held=int(row[b"fh"]), debt=int(row[b"debt"]), settled=int(row[b"settled"]), credited=int(row[b"credited"]),
        lots=lots, pins=_numbers(row.get(b"pin", b"")),
        counters={key.decode(): int(value) for key, value in row.items() if key.startswith(b"t:")},
    )  # fmt: skip


def _numbers(text: bytes) -> dict[str, int]:
    """ "key=number,..." """
    return {key: int(value) for key, value in (item.split("=") for item in text.decode().split(",") if item)}


def _hold(request_id: str, lease_ms: int | None, record: bytes) -> OpenHold:
    _, plan, funds, _, _, _, wallet, row = record.split(b"|", 7)
    return OpenHold(
        request_id=request_id, wallet_id=wallet.decode(), plan_nanos=int(plan), funds_nanos=int(funds), lease_ms=lease_ms, row=row
    )  # fmt: skip
