-- migrate:up
-- Every debit paid for two indexes that no look-up uses: legs are only ever summed as a whole, and the debit of a request is found
-- by the request.
DROP INDEX ledger_leg_entry;
DROP INDEX ledger_entry_request;

-- Most reports name no model, and nobody looks for requests without one.
DROP INDEX request_by_model;
CREATE INDEX request_by_model ON request (merchant_id, model, request_id DESC) WHERE model IS NOT NULL;

-- migrate:down
-- Forward only: restore a backup instead.
