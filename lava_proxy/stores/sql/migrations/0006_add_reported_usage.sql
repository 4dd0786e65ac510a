-- migrate:up
-- The caller's own id of reported usage (request_id stays ours and ordered by time) and a digest of what was reported, so that
-- the same id with other content is told from a repeat. Both are null for calls through the gateway.
ALTER TABLE request ADD COLUMN request_key text, ADD COLUMN fingerprint text;

-- migrate:down
-- Forward only: restore a backup instead.
