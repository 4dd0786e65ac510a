-- migrate:up
-- Every debit paid for two indexes that no look-up uses: legs are only ever summed as a whole, and the debit of a request is found
-- by the request.
DROP INDEX ledger_leg_entry;
DROP INDEX ledger_entry_request;

-- migrate:down
-- Forward only: restore a backup instead.
