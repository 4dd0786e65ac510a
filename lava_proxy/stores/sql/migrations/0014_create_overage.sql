-- migrate:up
-- Wallets that may be charged beyond their credit, and from where on; brought in line by workers/overage.py whenever a policy, a
-- plan, a card or a hold-off changes. Gateways take the overdraft line from here. Wallets that block have no row.
CREATE TABLE overage_line (
  wallet_id         text PRIMARY KEY REFERENCES wallet,
  policy            text NOT NULL CHECK (policy IN ('charge', 'auto_top_up')),
  debt_nanos_min    bigint NOT NULL, -- flushing notes the wallet at this debt,
  balance_nanos_max bigint NOT NULL, -- or at this balance, and below
  overdraft_nanos   bigint NOT NULL, -- how far below zero a reserve may go; 0 while limited
  limited_reason    text NOT NULL    -- no_card, suspended, requires_action; '' = the card can be charged
);
CREATE FUNCTION notify_overage_line() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('catalogue', 'connection:' || connection_id) FROM connection WHERE wallet_id = coalesce(NEW.wallet_id, OLD.wallet_id);
  RETURN NULL;
END $$;
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE ON overage_line
  FOR EACH ROW EXECUTE FUNCTION notify_overage_line();

-- Wallets to be looked at, and why. Only ever appended to (nobody waits for a lock here) and deleted by the worker.
CREATE TABLE overage_note (
  note_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  wallet_id    text NOT NULL,
  is_low       boolean NOT NULL DEFAULT false, -- a debit crossed its line
  is_cycle_end boolean NOT NULL DEFAULT false, -- any debt is due
  needed_nanos bigint NOT NULL DEFAULT 0,      -- of a call that was refused for want of it
  is_taken     boolean NOT NULL DEFAULT false, -- the worker looks at it now: what crosses from here on is noted anew
  not_before   timestamptz NOT NULL DEFAULT 'epoch' -- infinity: until something else notes the wallet
);
CREATE INDEX overage_note_due ON overage_note (not_before, note_id);
CREATE INDEX overage_note_wallet ON overage_note (wallet_id);

-- The last calendar month at whose end the debts of wallets without a plan were noted.
CREATE TABLE overage_month (
  month text PRIMARY KEY
);

-- Who changed an account by hand and why; the money is the order of the same id in `credit`.
CREATE TABLE adjustment (
  adjust_id    text PRIMARY KEY,
  merchant_id  text NOT NULL,
  wallet_id    text NOT NULL REFERENCES wallet,
  amount_nanos bigint NOT NULL,
  reason       text NOT NULL,
  made_by      text NOT NULL,
  created_at   timestamptz NOT NULL
);
CREATE INDEX adjustment_wallet ON adjustment (wallet_id, adjust_id);

-- Notes those of the wallets that may be charged: have a line, or should get one.
CREATE FUNCTION note_overage(wallets text[], has_ended boolean) RETURNS void LANGUAGE sql AS $$
  INSERT INTO overage_note (wallet_id, is_cycle_end)
  SELECT c.wallet_id, has_ended FROM connection c JOIN merchant m USING (merchant_id)
    LEFT JOIN subscription s ON s.connection_id = c.connection_id AND s.status <> 'cancelled'
    LEFT JOIN plan p ON p.plan_id = s.plan_id
    LEFT JOIN overage_line l ON l.wallet_id = c.wallet_id
  WHERE c.wallet_id = ANY(wallets) AND (l.wallet_id IS NOT NULL OR s.auto_top_up_bundle_id IS NOT NULL
    OR coalesce(c.overage, p.overage, m.overage)->>'policy' IN ('charge', 'auto_top_up'))
$$;

CREATE FUNCTION overage_of_wallet() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_overage(ARRAY[coalesce(NEW.wallet_id, OLD.wallet_id)], false);
  RETURN NULL;
END $$;
CREATE TRIGGER overage_changed AFTER INSERT ON connection FOR EACH ROW EXECUTE FUNCTION overage_of_wallet();
CREATE TRIGGER overage_edited AFTER UPDATE ON connection FOR EACH ROW
  WHEN (OLD.overage IS DISTINCT FROM NEW.overage OR (NEW.status = 'deleted' AND OLD.status <> 'deleted')
    OR (OLD.status = 'disabled' AND NEW.status <> 'disabled'))
  EXECUTE FUNCTION overage_of_wallet();
CREATE TRIGGER overage_changed AFTER INSERT OR UPDATE OR DELETE ON charge_hold_off FOR EACH ROW EXECUTE FUNCTION overage_of_wallet();
CREATE TRIGGER overage_changed AFTER INSERT OR UPDATE OR DELETE ON wallet_person FOR EACH ROW EXECUTE FUNCTION overage_of_wallet();
CREATE TRIGGER overage_changed AFTER UPDATE ON charge FOR EACH ROW
  WHEN (OLD.state <> NEW.state AND (NEW.state IN ('succeeded', 'declined', 'canceled', 'requires_action') OR OLD.state = 'requires_action'))
  EXECUTE FUNCTION overage_of_wallet();

CREATE FUNCTION overage_of_subscription() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_overage(ARRAY[NEW.wallet_id], TG_OP = 'UPDATE' AND (OLD.cycle_start_at <> NEW.cycle_start_at OR OLD.status <> NEW.status));
  RETURN NULL;
END $$;
CREATE TRIGGER overage_changed AFTER INSERT ON subscription FOR EACH ROW EXECUTE FUNCTION overage_of_subscription();
CREATE TRIGGER overage_edited AFTER UPDATE ON subscription FOR EACH ROW
  WHEN (OLD.cycle_start_at <> NEW.cycle_start_at OR OLD.status <> NEW.status OR OLD.plan_id <> NEW.plan_id
    OR OLD.auto_top_up_bundle_id IS DISTINCT FROM NEW.auto_top_up_bundle_id)
  EXECUTE FUNCTION overage_of_subscription();

CREATE FUNCTION overage_of_person() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_overage(ARRAY(SELECT wallet_id FROM wallet_person WHERE person_id = NEW.person_id), false);
  RETURN NULL;
END $$;
CREATE TRIGGER overage_changed AFTER INSERT ON payment_method FOR EACH ROW EXECUTE FUNCTION overage_of_person();
CREATE TRIGGER overage_edited AFTER UPDATE ON payment_method FOR EACH ROW
  WHEN (OLD.detached_at IS DISTINCT FROM NEW.detached_at OR OLD.is_default <> NEW.is_default) EXECUTE FUNCTION overage_of_person();

CREATE FUNCTION overage_of_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_overage(ARRAY(SELECT wallet_id FROM subscription WHERE plan_id = NEW.plan_id AND status <> 'cancelled'), false);
  RETURN NULL;
END $$;
CREATE TRIGGER overage_edited AFTER UPDATE ON plan FOR EACH ROW
  WHEN (OLD.overage IS DISTINCT FROM NEW.overage) EXECUTE FUNCTION overage_of_plan();
CREATE FUNCTION overage_of_merchant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_overage(ARRAY(SELECT wallet_id FROM connection WHERE merchant_id = NEW.merchant_id AND status <> 'deleted'), false);
  RETURN NULL;
END $$;
CREATE TRIGGER overage_edited AFTER UPDATE ON merchant FOR EACH ROW
  WHEN (OLD.overage IS DISTINCT FROM NEW.overage) EXECUTE FUNCTION overage_of_merchant();
CREATE FUNCTION overage_of_bundle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM note_overage(ARRAY(SELECT wallet_id FROM subscription WHERE auto_top_up_bundle_id = NEW.credit_bundle_id
    AND status <> 'cancelled'), false);
  RETURN NULL;
END $$;
CREATE TRIGGER overage_edited AFTER UPDATE ON credit_bundle FOR EACH ROW
  WHEN (OLD.deleted_at IS DISTINCT FROM NEW.deleted_at) EXECUTE FUNCTION overage_of_bundle();
CREATE INDEX subscription_by_plan ON subscription (plan_id) WHERE status <> 'cancelled';

-- Adjustments are orders in `credit` now.
DROP TABLE charge_adjustment;

-- migrate:down
-- Forward only: restore a backup instead.
