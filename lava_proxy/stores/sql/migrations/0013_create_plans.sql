-- migrate:up
CREATE TABLE plan (
  plan_id                       text PRIMARY KEY,
  merchant_id                   text NOT NULL REFERENCES merchant,
  name                          text NOT NULL,
  period_amount_nanos           bigint NOT NULL CHECK (period_amount_nanos BETWEEN 0 AND 10000000000000),
  included_credit_nanos         bigint NOT NULL CHECK (included_credit_nanos >= 0),
  billing_interval              text NOT NULL CHECK (billing_interval IN ('day', 'week', 'month', 'year')),
  rollover_type                 text NOT NULL CHECK (rollover_type IN ('full', 'none')),
  bundle_rollover_type          text NOT NULL CHECK (bundle_rollover_type IN ('full', 'none')),
  default_auto_top_up_bundle_id text,
  overage                       jsonb, -- as domain/plans.py reads it; null: the merchant's
  is_default                    boolean NOT NULL DEFAULT false,
  archived_at                   timestamptz,
  created_at                    timestamptz NOT NULL
);
CREATE INDEX plan_by_merchant ON plan (merchant_id, plan_id);
CREATE UNIQUE INDEX plan_default ON plan (merchant_id) WHERE is_default;

-- Which meters draw on plan credit.
CREATE TABLE plan_meter (
  plan_id  text NOT NULL REFERENCES plan,
  meter_id text NOT NULL REFERENCES meter,
  PRIMARY KEY (plan_id, meter_id)
);

CREATE TABLE credit_bundle (
  credit_bundle_id text PRIMARY KEY,
  plan_id          text NOT NULL REFERENCES plan,
  name             text NOT NULL,
  cost_nanos       bigint NOT NULL CHECK (cost_nanos > 0),
  credit_nanos     bigint NOT NULL CHECK (credit_nanos > 0),
  created_at       timestamptz NOT NULL,
  deleted_at       timestamptz
);
CREATE INDEX credit_bundle_by_plan ON credit_bundle (plan_id, credit_bundle_id);

CREATE TABLE subscription (
  subscription_id       text PRIMARY KEY,
  merchant_id           text NOT NULL REFERENCES merchant,
  connection_id         text NOT NULL REFERENCES connection,
  wallet_id             text NOT NULL REFERENCES wallet,
  plan_id               text NOT NULL REFERENCES plan,
  terms                 jsonb NOT NULL, -- what was sold: as domain/plans.py reads it
  status                text NOT NULL CHECK (status IN ('active', 'past_due', 'cancelled')),
  auto_top_up_bundle_id text,
  time_zone             text NOT NULL,
  anchor_at             timestamptz NOT NULL,
  cycle_index           integer NOT NULL,
  cycle_start_at        timestamptz NOT NULL,
  cycle_end_at          timestamptz NOT NULL,
  due_at                timestamptz NOT NULL, -- when the renewals look at it next: the cycle's end, or later while a card is tried
  pending               jsonb,
  started_at            timestamptz NOT NULL,
  cancelled_at          timestamptz
);
CREATE UNIQUE INDEX subscription_live ON subscription (connection_id) WHERE status <> 'cancelled';
CREATE INDEX subscription_due ON subscription (due_at) WHERE status <> 'cancelled';
CREATE INDEX subscription_by_merchant ON subscription (merchant_id, subscription_id);

-- One row a period that was begun, whoever begins it and however often: the guard that a renewal happens once.
CREATE TABLE subscription_period (
  subscription_id text NOT NULL REFERENCES subscription,
  anchor_at       timestamptz NOT NULL,
  period_index    integer NOT NULL,
  start_at        timestamptz NOT NULL,
  end_at          timestamptz NOT NULL,
  plan_id         text NOT NULL,
  amount_nanos    bigint NOT NULL,
  granted_nanos   bigint NOT NULL,
  charge_id       text NOT NULL DEFAULT '', -- '' where nothing was due
  created_at      timestamptz NOT NULL,
  PRIMARY KEY (subscription_id, anchor_at, period_index)
);

-- Overage policy: the connection's own, else its plan's, else the merchant's. Null: not set here.
ALTER TABLE merchant ADD COLUMN overage jsonb;
ALTER TABLE connection ADD COLUMN overage jsonb;

-- Every merchant has a plan that costs nothing, on which customers start.
INSERT INTO plan (plan_id, merchant_id, name, period_amount_nanos, included_credit_nanos, billing_interval, rollover_type,
  bundle_rollover_type, is_default, created_at)
SELECT 'sc_free_' || merchant_id, merchant_id, 'Free', 0, 0, 'month', 'none', 'full', true, created_at FROM merchant;

CREATE TRIGGER catalogue_changed AFTER UPDATE OR DELETE ON plan FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE ON plan_meter FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();

-- Thousands of subscriptions are renewed at once: a gateway then drops what it knows of those connections, not all it knows.
CREATE FUNCTION notify_subscription() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('catalogue', 'connection:' || NEW.connection_id);
  RETURN NULL;
END $$;
CREATE TRIGGER subscription_started AFTER INSERT ON subscription FOR EACH ROW EXECUTE FUNCTION notify_subscription();
CREATE TRIGGER subscription_changed AFTER UPDATE ON subscription FOR EACH ROW
  WHEN ((OLD.plan_id, OLD.status, OLD.cycle_start_at) IS DISTINCT FROM (NEW.plan_id, NEW.status, NEW.cycle_start_at))
  EXECUTE FUNCTION notify_subscription();

-- migrate:down
-- Forward only: restore a backup instead.
