-- migrate:up
ALTER TABLE merchant ADD COLUMN clamp_floor integer NOT NULL DEFAULT 0 CHECK (clamp_floor >= 0); -- 0: calls are refused, not clamped

-- migrate:down
-- Forward only: restore a backup instead.
