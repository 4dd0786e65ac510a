-- migrate:up
-- Who changed what of a merchant's, and what it was before: for the merchant, never edited. Holds no secret.
CREATE TABLE audit_log (
  audit_id    text PRIMARY KEY, -- in the order of time
  merchant_id text NOT NULL REFERENCES merchant,
  actor_kind  text NOT NULL CHECK (actor_kind IN ('session', 'key', 'cli')),
  actor_id    text NOT NULL,
  actor_name  text NOT NULL,
  action      text NOT NULL, -- object.verb, such as meter.change
  object_kind text NOT NULL,
  object_id   text NOT NULL,
  before      jsonb,
  after       jsonb,
  at          timestamptz NOT NULL
);
CREATE INDEX audit_log_by_merchant ON audit_log (merchant_id, audit_id DESC);
CREATE INDEX audit_log_by_object ON audit_log (merchant_id, object_id, audit_id DESC);

-- Lists of requests, newest first, by what is rare among them.
CREATE INDEX request_by_model ON request (merchant_id, model, request_id DESC);
CREATE INDEX request_by_meter ON request (meter_id, request_id DESC);
CREATE INDEX request_failed ON request (merchant_id, request_id DESC) WHERE status = 'error';

-- migrate:down
-- Forward only: restore a backup instead.
