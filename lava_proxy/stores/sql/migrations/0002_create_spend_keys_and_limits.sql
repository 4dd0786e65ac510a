-- migrate:up
CREATE TABLE spend_key (
  spend_key_id      text PRIMARY KEY,
  merchant_id       text NOT NULL REFERENCES merchant,
  name              text NOT NULL,
  key_hash          bytea NOT NULL UNIQUE,
  key_preview       text NOT NULL,
  status            text NOT NULL CHECK (status IN ('active', 'paused')),
  request_shape     text NOT NULL CHECK (request_shape IN ('openai', 'anthropic')),
  allowed_models    jsonb, -- null: all
  allowed_providers jsonb, -- null: all
  limits            jsonb NOT NULL, -- as domain/limits.py reads them
  expires_at        timestamptz,
  created_at        timestamptz NOT NULL
);
CREATE INDEX spend_key_by_merchant ON spend_key (merchant_id, spend_key_id);
CREATE TRIGGER catalogue_changed AFTER INSERT OR UPDATE OR DELETE ON spend_key FOR EACH STATEMENT EXECUTE FUNCTION notify_catalogue();

ALTER TABLE connection ADD COLUMN limits jsonb; -- null: none

-- Whose calls they were: what the counters in Redis are rebuilt from.
ALTER TABLE request ADD COLUMN spend_key_id text;
CREATE INDEX request_by_spend_key ON request (spend_key_id, request_id) WHERE spend_key_id IS NOT NULL;

-- migrate:down
-- Forward only: restore a backup instead.
