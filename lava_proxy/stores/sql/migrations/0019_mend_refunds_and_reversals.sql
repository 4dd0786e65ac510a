-- migrate:up
-- What a refund has taken from the credit that its charge bought, and what from funds (or left as debt), to be given back when it
-- fails. claims_used: credit that was used before is owed too.
ALTER TABLE refund
  ADD COLUMN claims_used boolean NOT NULL DEFAULT true,
  ADD COLUMN lot_nanos bigint NOT NULL DEFAULT 0,
  ADD COLUMN funds_nanos bigint NOT NULL DEFAULT 0;
UPDATE refund SET lot_nanos = clawed_cents * 10000000;

-- A debit that is given back takes its units back from the tier counter, too; also where nothing was charged for them.
ALTER TABLE credit
  ADD COLUMN tier_field text NOT NULL DEFAULT '',
  ADD COLUMN tier_units bigint NOT NULL DEFAULT 0,
  DROP CONSTRAINT credit_check,
  ADD CHECK (kind = 'adjust' AND amount_nanos <> 0 OR kind = 'credit' AND (amount_nanos > 0 OR amount_nanos = 0 AND tier_units > 0)
    OR kind = 'renew' AND amount_nanos >= 0);

-- migrate:down
-- Forward only: restore a backup instead.
