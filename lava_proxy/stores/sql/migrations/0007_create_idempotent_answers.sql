-- migrate:up
-- The answers of POSTs that came with an Idempotency-Key, for a day. `status` null: the first call still runs.
CREATE TABLE idempotent_answer (
  merchant_id     text NOT NULL REFERENCES merchant,
  idempotency_key text NOT NULL,
  request_hash    bytea NOT NULL, -- of method, path, query and body
  claim           text NOT NULL,  -- whose claim it is: a call that was given up for dead may not store its answer
  status          smallint,
  media_type      text,
  answer_sealed   bytea NOT NULL, -- answers may show secrets
  claimed_at      timestamptz NOT NULL,
  PRIMARY KEY (merchant_id, idempotency_key)
);
CREATE INDEX idempotent_answer_age ON idempotent_answer (claimed_at);

-- A secret key's page is read by its merchant.
CREATE INDEX secret_key_by_merchant ON secret_key (merchant_id, secret_key_id);

-- migrate:down
-- Forward only: restore a backup instead.
