-- migrate:up
-- Facts of the installation itself. `canary`: sealed under the master key, so that a start with another key is refused.
CREATE TABLE installation (
  name         text PRIMARY KEY,
  value_sealed bytea NOT NULL
);

-- migrate:down
-- Forward only: restore a backup instead.
