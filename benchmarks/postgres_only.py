"""The same endpoint as benchmarks/reports.py measures, without Redis: aiohttp and asyncpg, one statement a report.

A report is one row with a unique (merchant, id) and one balance update, in one transaction; a repeat is answered from its row.
A batch is one transaction: rows by unnest in the order of ids, then each wallet's balance once, in the order of wallets, so that
batches cannot lock each other out. What it leaves out (keys, tiers, prices, ledger legs, the whole answer) makes it faster.

    python -m benchmarks.postgres_only PORT DATABASE_URL WALLETS
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import Any

import asyncpg
import orjson
import uvloop
from aiohttp import web

NANOS_PER_TOKEN = 20_000
POOL = 16
SCHEMA = """
DROP TABLE IF EXISTS report, wallet;
CREATE TABLE wallet (wallet_id text PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE report (
  merchant_id text NOT NULL, request_id text NOT NULL, wallet_id text NOT NULL, amount bigint NOT NULL, body jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (merchant_id, request_id));
"""
ONE = """
WITH fresh AS (
  INSERT INTO report (merchant_id, request_id, wallet_id, amount, body) VALUES ('m', $1, $2, $3, $4)
  ON CONFLICT DO NOTHING RETURNING 1)
UPDATE wallet SET balance = balance - $3 WHERE wallet_id = $2 AND EXISTS (SELECT 1 FROM fresh)
"""
MANY = """
INSERT INTO report (merchant_id, request_id, wallet_id, amount, body)
SELECT 'm', * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::jsonb[]) AS said (request_id) ORDER BY request_id
ON CONFLICT DO NOTHING RETURNING wallet_id, amount
"""


class Endpoint:
    """Both routes over one pool."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def single(self, request: web.Request) -> web.Response:
        body = await request.read()
        said = orjson.loads(body)
        amount = _amount(said)
        async with self._pool.acquire() as db:
            done = await db.execute(ONE, said["request_id"], said["customer_id"], amount, body.decode())
            if done != "UPDATE 1":
                await db.fetchrow("SELECT * FROM report WHERE merchant_id = 'm' AND request_id = $1", said["request_id"])
        return _json({"request_id": said["request_id"], "charge": amount})

    async def batch(self, request: web.Request) -> web.Response:
        items = orjson.loads(await request.read())["requests"]
        amounts = [_amount(said) for said in items]
        async with self._pool.acquire() as db, db.transaction():
            fresh = await db.fetch(
                MANY, [said["request_id"] for said in items], [said["customer_id"] for said in items], amounts,
                [orjson.dumps(said).decode() for said in items],
            )  # fmt: skip
            sums: Counter[str] = Counter()
            for row in fresh:
                sums[row["wallet_id"]] += row["amount"]
            await db.executemany("UPDATE wallet SET balance = balance - $2 WHERE wallet_id = $1", sorted(sums.items()))
        return _json({"results": [{"status": 200, "request": {"request_id": said["request_id"]}} for said in items]})


def _amount(said: dict[str, Any]) -> int:
    return int(said["input_tokens"] + said["output_tokens"]) * NANOS_PER_TOKEN


def _json(value: object) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


async def application(database_url: str, wallets: int) -> web.Application:
    """The endpoint over an empty schema with wallets `w0`, `w1` ..."""
    pool = await asyncpg.create_pool(database_url, min_size=POOL, max_size=POOL)
    await pool.execute(SCHEMA)
    await pool.execute("INSERT INTO wallet SELECT 'w' || n, 0 FROM generate_series(0, $1::int - 1) AS n", wallets)
    endpoint = Endpoint(pool)
    found = web.Application(client_max_size=8 << 20)
    found.add_routes([web.post("/v1/requests", endpoint.single), web.post("/v1/requests/batch", endpoint.batch)])
    return found


async def serve(port: int, database_url: str, wallets: int) -> None:
    """Until the process is ended; says `ready`."""
    runner = web.AppRunner(await application(database_url, wallets), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
