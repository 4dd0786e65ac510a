-- migrate:up
-- Who pays: known by their phone over all wallets of an installation, and keeps cards across them. '' = no phone (a merchant's own wallet).
CREATE TABLE person (
  person_id  text PRIMARY KEY,
  phone      text NOT NULL DEFAULT '', -- E.164
  email      text,
  created_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX person_phone ON person (phone) WHERE phone <> '';

CREATE TABLE wallet_person (
  wallet_id text PRIMARY KEY REFERENCES wallet,
  person_id text NOT NULL REFERENCES person
);
CREATE INDEX wallet_person_person ON wallet_person (person_id);

CREATE TABLE processor_customer (
  person_id    text NOT NULL REFERENCES person,
  processor    text NOT NULL,
  customer_ref text NOT NULL,
  PRIMARY KEY (person_id, processor),
  UNIQUE (processor, customer_ref)
);

-- Never a number: what people recognise a card by.
CREATE TABLE payment_method (
  payment_method_id text PRIMARY KEY,
  person_id         text NOT NULL REFERENCES person,
  processor         text NOT NULL,
  processor_ref     text NOT NULL,
  brand             text NOT NULL,
  last4             text NOT NULL,
  expiry_month      smallint NOT NULL,
  expiry_year       smallint NOT NULL,
  is_default        boolean NOT NULL,
  has_error         boolean NOT NULL DEFAULT false,
  error_code        text,
  error_message     text,
  error_at          timestamptz,
  created_at        timestamptz NOT NULL,
  detached_at       timestamptz,
  UNIQUE (processor, processor_ref)
);
CREATE UNIQUE INDEX payment_method_default ON payment_method (person_id, processor) WHERE is_default AND detached_at IS NULL;

-- Money asked of a card. Each state is committed before the next call to the processor.
CREATE TABLE charge (
  charge_id         text PRIMARY KEY,
  key               text NOT NULL UNIQUE, -- the occasion; `occasion#2`, ... for what follows a canceled charge of it
  occasion          text NOT NULL,        -- the caller's name of what is paid for: a checkout, a subscription's period
  wallet_id         text NOT NULL REFERENCES wallet,
  merchant_id       text NOT NULL,
  person_id         text NOT NULL REFERENCES person,
  purpose           text NOT NULL CHECK (purpose IN
    ('overage', 'auto_top_up', 'top_up', 'bundle', 'subscription_start', 'subscription_renewal', 'plan_upgrade')),
  amount_cents      bigint NOT NULL CHECK (amount_cents > 0 AND amount_cents <= 900000000),
  currency          text NOT NULL,
  on_session        boolean NOT NULL,
  price_snapshot    jsonb NOT NULL, -- what was promised for the money, fixed here
  subject           jsonb NOT NULL, -- what the money is for
  state             text NOT NULL CHECK (state IN
    ('created', 'pi_created', 'confirming', 'unknown', 'requires_action', 'succeeded', 'declined', 'canceled')),
  processor         text NOT NULL,
  processor_ref     text NOT NULL DEFAULT '',
  payment_method_id text REFERENCES payment_method, -- asked for; null: the person's default
  attempt           integer NOT NULL DEFAULT 1,     -- grows only after a definitive answer
  attempt_ref       text NOT NULL DEFAULT '',       -- the processor's name of the last attempt that was declined
  captured_cents    bigint NOT NULL DEFAULT 0,
  action_url        text,
  return_url        text,
  decline_code      text,
  decline_reason    text,
  decline_message   text,
  tries             integer NOT NULL DEFAULT 0,     -- in this state
  next_try_at       timestamptz,                    -- when the worker looks at it
  created_at        timestamptz NOT NULL,
  updated_at        timestamptz NOT NULL
);
CREATE UNIQUE INDEX charge_open ON charge (wallet_id) WHERE state IN ('created', 'pi_created', 'confirming', 'unknown', 'requires_action');
CREATE UNIQUE INDEX charge_payment ON charge (processor, processor_ref) WHERE processor_ref <> '';
CREATE INDEX charge_due ON charge (next_try_at) WHERE next_try_at IS NOT NULL;
CREATE INDEX charge_by_occasion ON charge (occasion, charge_id DESC);
CREATE INDEX charge_by_wallet ON charge (wallet_id, charge_id DESC);

-- One row a change of state: what outgoing events are made from.
CREATE TABLE charge_transition (
  charge_id text NOT NULL REFERENCES charge,
  number    integer NOT NULL,
  old_state text NOT NULL,
  new_state text NOT NULL,
  at        timestamptz NOT NULL,
  PRIMARY KEY (charge_id, number)
);

CREATE TABLE charge_hold_off (
  wallet_id   text PRIMARY KEY REFERENCES wallet,
  declines    integer NOT NULL,
  next_try_at timestamptz NOT NULL,
  suspended   boolean NOT NULL
);

-- A notice of the processor's that has had its effect: written in the effect's transaction.
CREATE TABLE processor_event (
  processor   text NOT NULL,
  event_id    text NOT NULL,
  kind        text NOT NULL,
  object_ref  text NOT NULL,
  received_at timestamptz NOT NULL,
  PRIMARY KEY (processor, event_id)
);

-- Money that went back. `clawed_cents` is what was taken from the wallet for it; over a charge never more than was captured.
CREATE TABLE refund (
  refund_id     text PRIMARY KEY,
  charge_id     text NOT NULL REFERENCES charge,
  kind          text NOT NULL CHECK (kind IN ('refund', 'dispute')),
  processor     text NOT NULL,
  processor_ref text NOT NULL DEFAULT '',
  amount_cents  bigint NOT NULL CHECK (amount_cents > 0),
  clawed_cents  bigint NOT NULL DEFAULT 0,
  state         text NOT NULL CHECK (state IN ('requested', 'pending', 'done', 'failed')),
  adjustments   integer NOT NULL DEFAULT 0,
  reason        text NOT NULL,
  created_at    timestamptz NOT NULL,
  updated_at    timestamptz NOT NULL
);
CREATE UNIQUE INDEX refund_processor ON refund (processor, processor_ref) WHERE processor_ref <> '';
CREATE INDEX refund_by_charge ON refund (charge_id);

-- What wallets owe or are owed back for refunds and disputes; ordered here in the transaction that found it out.
CREATE TABLE charge_adjustment (
  adjust_id   text PRIMARY KEY,
  merchant_id text NOT NULL,
  wallet_id   text NOT NULL REFERENCES wallet,
  delta_nanos bigint NOT NULL CHECK (delta_nanos <> 0),
  lot_id      text,
  reason      text NOT NULL
);

-- The state of the processor of test cards: customers, cards, setups, payments, refunds; and the answers that its keys repeat.
CREATE TABLE sandbox_object (
  object_ref   text PRIMARY KEY,
  kind         text NOT NULL,
  customer_ref text NOT NULL,
  facts        jsonb NOT NULL,
  created_at   timestamptz NOT NULL
);
CREATE INDEX sandbox_object_customer ON sandbox_object (customer_ref, kind);
CREATE INDEX sandbox_object_created ON sandbox_object (kind, created_at);
CREATE TABLE sandbox_answer (
  key         text PRIMARY KEY,
  fingerprint text NOT NULL,
  object_ref  text NOT NULL,
  decline     jsonb,
  created_at  timestamptz NOT NULL
);

-- migrate:down
-- Forward only: restore a backup instead.
