-- migrate:up
-- Is credit owed that the charge bought and that was used before the refund? Refunds from before this always took their amount.
ALTER TABLE refund ADD COLUMN claims_used boolean NOT NULL DEFAULT true;

-- A debit that is given back takes its units back from the tier counter, too; also where nothing was charged for them.
ALTER TABLE credit
  ADD COLUMN tier_field text NOT NULL DEFAULT '',
  ADD COLUMN tier_units bigint NOT NULL DEFAULT 0,
  DROP CONSTRAINT credit_check,
  ADD CHECK (kind = 'adjust' AND amount_nanos <> 0 OR kind = 'credit' AND (amount_nanos > 0 OR amount_nanos = 0 AND tier_units > 0)
    OR kind = 'renew' AND amount_nanos >= 0);

-- migrate:down
-- Forward only: restore a backup instead.
