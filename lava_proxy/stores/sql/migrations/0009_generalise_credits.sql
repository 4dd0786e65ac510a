-- migrate:up
-- Orders of money of every kind are written here first and applied to Redis by their id until their flushed ledger entry confirms
-- them. `credit` adds a lot; `renew` begins a cycle (amount_nanos: what it grants, may be nothing); `adjust` is signed, below zero it
-- takes back. The end of an expired lot needs no order: the lot's key says when, and Redis ends it by itself.
ALTER TABLE credit
  DROP CONSTRAINT credit_amount_nanos_check,
  ADD COLUMN kind text NOT NULL DEFAULT 'credit' CHECK (kind IN ('credit', 'renew', 'adjust')),
  ADD COLUMN ends text NOT NULL DEFAULT '',         -- renew: classes of plan lots that end, c(ycle) and b(undle)
  ADD COLUMN drop_cycles text NOT NULL DEFAULT '',  -- renew: cycles whose tier counters are over, comma-separated
  ADD COLUMN expires_at timestamptz,                -- of the lot that it makes; null: never
  ADD COLUMN swept_at timestamptz,                  -- when the expired lot's wallet was swept; null: not yet
  ADD COLUMN ordinal bigint GENERATED ALWAYS AS IDENTITY, -- the order in which orders of one wallet are applied
  ADD CHECK (amount_nanos BETWEEN -9000000000000000 AND 9000000000000000),
  ADD CHECK (kind = 'adjust' AND amount_nanos <> 0 OR kind = 'credit' AND amount_nanos > 0 OR kind = 'renew' AND amount_nanos >= 0);
DROP INDEX credit_open;
CREATE INDEX credit_open ON credit (ordinal) WHERE applied_at IS NULL;
CREATE INDEX credit_wallet ON credit (wallet_id, ordinal);
CREATE INDEX credit_expiring ON credit (expires_at) WHERE expires_at IS NOT NULL AND swept_at IS NULL;

-- What replaying needs of holds, which the ledger does not know; see domain/ledger.py.
ALTER TABLE ledger_entry
  ADD COLUMN pinned_nanos bigint NOT NULL DEFAULT 0,
  ADD COLUMN opened_wseq bigint;

-- Each wallet's newest entry, written with it: who is below which line can be asked without Redis. Held amounts are included.
CREATE TABLE wallet_state (
  wallet_id     text PRIMARY KEY,
  wseq          bigint NOT NULL,
  balance_nanos bigint NOT NULL,
  plan_nanos    bigint NOT NULL,
  funds_nanos   bigint NOT NULL,
  debt_nanos    bigint NOT NULL,
  at            timestamptz NOT NULL
) WITH (fillfactor = 70); -- rewritten with every batch: room for updates within the page
CREATE INDEX wallet_state_debt ON wallet_state (wallet_id) WHERE debt_nanos > 0;

INSERT INTO wallet_state
SELECT wallet_id, wseq, balance_nanos, plan_total, balance_nanos - plan_total, debt_nanos, at FROM (
  SELECT DISTINCT ON (wallet_id) wallet_id, wseq, balance_nanos, debt_nanos, at,
    sum(CASE kind WHEN 'credit' THEN plan_nanos ELSE -plan_nanos END) OVER (PARTITION BY wallet_id)::bigint AS plan_total
  FROM ledger_entry ORDER BY wallet_id, wseq DESC) AS newest;

-- migrate:down
-- Forward only: restore a backup instead.
