-- migrate:up
CREATE TABLE merchant (
  merchant_id text PRIMARY KEY,
  name        text NOT NULL,
  wallet_id   text NOT NULL UNIQUE,
  created_at  timestamptz NOT NULL
);

CREATE TABLE wallet (
  wallet_id   text PRIMARY KEY,
  merchant_id text NOT NULL REFERENCES merchant DEFERRABLE INITIALLY DEFERRED,
  part        smallint NOT NULL,
  created_at  timestamptz NOT NULL
);
CREATE INDEX wallet_part ON wallet (part);

CREATE TABLE secret_key (
  secret_key_id text PRIMARY KEY,
  merchant_id   text NOT NULL REFERENCES merchant,
  name          text NOT NULL,
  key_hash      bytea NOT NULL UNIQUE,
  hint          text NOT NULL,
  created_at    timestamptz NOT NULL,
  revoked_at    timestamptz
);

CREATE TABLE connection (
  connection_id text PRIMARY KEY,
  merchant_id   text NOT NULL REFERENCES merchant,
  wallet_id     text NOT NULL UNIQUE REFERENCES wallet,
  reference_id  text,
  secret_hash   bytea NOT NULL UNIQUE,
  secret_sealed bytea NOT NULL,
  status        text NOT NULL DEFAULT 'ok' CHECK (status IN ('ok', 'limited', 'disabled', 'deleted')),
  contact       jsonb NOT NULL DEFAULT '{}',
  metadata      jsonb,
  created_at    timestamptz NOT NULL
);
CREATE UNIQUE INDEX connection_reference ON connection (merchant_id, reference_id) WHERE reference_id IS NOT NULL AND status <> 'deleted';
CREATE INDEX connection_by_merchant ON connection (merchant_id, connection_id);

CREATE TABLE meter (
  meter_id      text PRIMARY KEY,
  merchant_id   text NOT NULL REFERENCES merchant,
  meter_slug    text NOT NULL,
  secret_hash   bytea NOT NULL UNIQUE,
  secret_sealed bytea NOT NULL,
  archived_at   timestamptz,
  created_at    timestamptz NOT NULL,
  UNIQUE (merchant_id, meter_slug)
);

-- A meter's price is a row here and never changes: old requests keep the version they were charged by.
CREATE TABLE meter_version (
  version_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  meter_id    text NOT NULL REFERENCES meter,
  name        text NOT NULL,
  rate_type   text NOT NULL CHECK (rate_type IN ('fixed', 'percentage')),
  tier_type   text NOT NULL CHECK (tier_type IN ('tokens_1m', 'characters_1m', 'minutes', 'requests')),
  token_basis text NOT NULL CHECK (token_basis IN ('input+output', 'output')),
  tiers       jsonb NOT NULL, -- [[start, rate], ...] in the integer units of domain/catalog.py
  created_at  timestamptz NOT NULL
);
CREATE INDEX meter_version_latest ON meter_version (meter_id, version_id DESC);

CREATE TABLE provider_key (
  merchant_id text NOT NULL REFERENCES merchant,
  provider    text NOT NULL,
  key_sealed  bytea NOT NULL,
  hint        text NOT NULL,
  created_at  timestamptz NOT NULL,
  PRIMARY KEY (merchant_id, provider)
);

-- Money in is written here first; the applier credits Redis, idempotent by credit_id, until the flushed ledger entry confirms it.
CREATE TABLE credit (
  credit_id    text PRIMARY KEY,
  wallet_id    text NOT NULL REFERENCES wallet,
  amount_nanos bigint NOT NULL CHECK (amount_nanos > 0 AND amount_nanos <= 9000000000000000),
  lot_key      text NOT NULL,
  reason       text NOT NULL,
  created_at   timestamptz NOT NULL,
  applied_at   timestamptz
);
CREATE INDEX credit_open ON credit (created_at) WHERE applied_at IS NULL;

-- How far each billing partition's outbox has been copied; updated in the same transaction as the rows, hence exactly once.
CREATE TABLE outbox_mark (
  part  smallint PRIMARY KEY,
  epoch bigint NOT NULL,
  pseq  bigint NOT NULL
);

CREATE TABLE ledger_entry (
  part          smallint NOT NULL,
  epoch         bigint NOT NULL,
  pseq          bigint NOT NULL,
  wallet_id     text NOT NULL,
  wseq          bigint NOT NULL,
  kind          text NOT NULL, -- settle, credit
  request_id    text NOT NULL,
  amount_nanos  bigint NOT NULL, -- signed change of the wallet
  balance_nanos bigint NOT NULL, -- of the wallet after it, held amounts included
  plan_nanos    bigint NOT NULL, -- magnitude taken from or added to each pot
  funds_nanos   bigint NOT NULL,
  position      bigint NOT NULL, -- tier counter before
  flags         text NOT NULL,   -- l late, o above the hold, b below the overdraft line
  debt_nanos    bigint NOT NULL,
  lot_key       text,            -- of a credit
  at            timestamptz NOT NULL
) PARTITION BY RANGE (at);
CREATE TABLE ledger_entry_default PARTITION OF ledger_entry DEFAULT;
CREATE INDEX ledger_entry_wallet ON ledger_entry (wallet_id, wseq);
CREATE INDEX ledger_entry_request ON ledger_entry (request_id);

-- Double entry: the legs of one ledger entry sum to zero.
CREATE TABLE ledger_leg (
  wallet_id    text NOT NULL,
  wseq         bigint NOT NULL,
  account      text NOT NULL,
  amount_nanos bigint NOT NULL,
  at           timestamptz NOT NULL
) PARTITION BY RANGE (at);
CREATE TABLE ledger_leg_default PARTITION OF ledger_leg DEFAULT;
CREATE INDEX ledger_leg_entry ON ledger_leg (wallet_id, wseq);

CREATE TABLE request (
  request_id        text NOT NULL,
  merchant_id       text NOT NULL,
  wallet_id         text NOT NULL,
  connection_id     text,
  meter_id          text,
  meter_version     bigint,
  status            text NOT NULL, -- completed, error
  outcome           text NOT NULL,
  provenance        text NOT NULL,
  provider          text NOT NULL,
  provider_key_type text NOT NULL,
  model             text,
  endpoint          text NOT NULL,
  api               text NOT NULL,
  streamed          boolean NOT NULL,
  response_id       text,
  http_status       smallint,
  billed            boolean NOT NULL,
  usage             jsonb NOT NULL,
  cost_nanos        bigint NOT NULL,
  charge_nanos      bigint NOT NULL,
  breakdown         jsonb NOT NULL,
  price_version     text,
  priced_at         timestamptz,
  service_tier      text,
  tier_field        text,
  tier_units        bigint NOT NULL,
  position          bigint NOT NULL,
  flags             text NOT NULL,
  wseq              bigint NOT NULL,
  metadata          jsonb,
  timings           jsonb,
  created_at        timestamptz NOT NULL,
  completed_at      timestamptz NOT NULL
) PARTITION BY RANGE (created_at);
CREATE TABLE request_default PARTITION OF request DEFAULT;
CREATE INDEX request_id_index ON request (request_id);
CREATE INDEX request_by_merchant ON request (merchant_id, request_id DESC);
CREATE INDEX request_by_connection ON request (connection_id, request_id DESC);
CREATE INDEX request_tier ON request (wallet_id, tier_field) WHERE tier_units > 0;

-- A request id is charged once, for ever; no nullable column in the key.
CREATE TABLE request_once (
  merchant_id text NOT NULL,
  request_key text NOT NULL,
  request_id  text NOT NULL,
  PRIMARY KEY (merchant_id, request_key)
) PARTITION BY HASH (merchant_id, request_key);
CREATE TABLE request_once_0 PARTITION OF request_once FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE request_once_1 PARTITION OF request_once FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE request_once_2 PARTITION OF request_once FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE request_once_3 PARTITION OF request_once FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- What should not have happened and was set right: a second debit of one id, reversed by a credit of the same amount.
CREATE TABLE anomaly (
  anomaly_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind       text NOT NULL,
  wallet_id  text NOT NULL,
  request_id text NOT NULL,
  facts      jsonb NOT NULL,
  at         timestamptz NOT NULL
);

CREATE FUNCTION notify_catalogue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('catalogue', TG_TABLE_NAME);
  RETURN NULL;
END $$;
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE ON merchant FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE ON secret_key FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();
CREATE TRIGGER catalogue_changed AFTER UPDATE OR DELETE ON connection FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();
CREATE TRIGGER catalogue_changed AFTER UPDATE OR DELETE ON meter FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();
CREATE TRIGGER catalogue_changed AFTER INSERT ON meter_version FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE ON provider_key FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();

-- migrate:down
-- Forward only: restore a backup instead.
