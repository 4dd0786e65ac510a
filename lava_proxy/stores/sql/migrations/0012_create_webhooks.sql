-- migrate:up
CREATE TABLE webhook (
  webhook_id        text PRIMARY KEY,
  merchant_id       text NOT NULL REFERENCES merchant,
  name              text NOT NULL,
  url               text NOT NULL,
  vocabulary        text NOT NULL CHECK (vocabulary IN ('customer', 'connection')),
  events            jsonb, -- names of the newest vocabulary; null: all
  status            text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
  disabled_reason   text, -- merchant, gone (410), failing (three days)
  failing_since     timestamptz, -- first failure after the last success
  last_delivered_at timestamptz,
  created_at        timestamptz NOT NULL
);
CREATE INDEX webhook_by_merchant ON webhook (merchant_id, webhook_id);

-- Several while secrets are being rotated: the newest has no end.
CREATE TABLE webhook_secret (
  webhook_id    text NOT NULL REFERENCES webhook ON DELETE CASCADE,
  secret_id     text NOT NULL,
  secret_sealed bytea NOT NULL,
  created_at    timestamptz NOT NULL,
  expires_at    timestamptz,
  PRIMARY KEY (webhook_id, secret_id)
);

-- What happened, kept only where an endpoint wants to hear of it. The order of `ordinal` is the order of a wallet's events.
CREATE TABLE event (
  event_id      text PRIMARY KEY,
  ordinal       bigint GENERATED ALWAYS AS IDENTITY,
  merchant_id   text NOT NULL REFERENCES merchant,
  type          text NOT NULL,
  subject_id    text, -- the connection, or another thing the event is about
  wallet_id     text,
  sequence      bigint NOT NULL, -- wseq of the wallet's last committed movement
  balance_nanos bigint, -- of the wallet after that movement
  customer      jsonb, -- facts of the connection at that moment; never its secret
  facts         jsonb NOT NULL DEFAULT '{}',
  created_at    timestamptz NOT NULL
);
CREATE INDEX event_by_age ON event (created_at);

-- Transitions that have been told, for ever: the same one again makes no event.
CREATE TABLE event_once (
  merchant_id text NOT NULL,
  type        text NOT NULL,
  transition  text NOT NULL,
  PRIMARY KEY (merchant_id, type, transition)
);

CREATE TABLE delivery (
  delivery_id  text PRIMARY KEY,
  event_id     text NOT NULL REFERENCES event,
  webhook_id   text NOT NULL REFERENCES webhook ON DELETE CASCADE,
  wallet_id    text,
  ordinal      bigint NOT NULL, -- the event's
  state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
  tries        integer NOT NULL DEFAULT 0, -- begun; one that died with its process counts too
  first_try_at timestamptz, -- the window of tries starts here; a replay opens a new one
  next_try_at  timestamptz NOT NULL, -- while one is under way: when it is taken for dead
  last_status  integer,
  last_error   text,
  excerpt      text NOT NULL DEFAULT '',
  created_at   timestamptz NOT NULL,
  ended_at     timestamptz
);
CREATE INDEX delivery_due ON delivery (next_try_at) WHERE state = 'pending';
CREATE INDEX delivery_due_of_webhook ON delivery (webhook_id, next_try_at) WHERE state = 'pending';
CREATE INDEX delivery_order ON delivery (wallet_id, webhook_id, ordinal) WHERE state = 'pending';
CREATE INDEX delivery_oldest ON delivery (created_at) WHERE state = 'pending';
CREATE INDEX delivery_by_webhook ON delivery (webhook_id, delivery_id);
CREATE INDEX delivery_by_event ON delivery (event_id);
CREATE INDEX delivery_ended ON delivery (ended_at) WHERE state <> 'pending';

CREATE TABLE delivery_attempt (
  delivery_id text NOT NULL REFERENCES delivery ON DELETE CASCADE,
  at          timestamptz NOT NULL,
  try         integer NOT NULL,
  status      integer,
  error       text,
  duration_ms integer NOT NULL
);
CREATE INDEX delivery_attempt_by_delivery ON delivery_attempt (delivery_id, at);

-- The last committed balance of each wallet that an endpoint wants to hear of; at most one event a second is made of it.
CREATE TABLE balance_news (
  wallet_id     text PRIMARY KEY,
  merchant_id   text NOT NULL,
  wseq          bigint NOT NULL,
  balance_nanos bigint NOT NULL,
  is_due        boolean NOT NULL,
  not_before    timestamptz NOT NULL
);
CREATE INDEX balance_news_due ON balance_news (not_before) WHERE is_due;

-- migrate:down
-- Forward only: restore a backup instead.
