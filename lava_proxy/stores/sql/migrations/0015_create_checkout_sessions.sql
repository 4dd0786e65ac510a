-- migrate:up
-- A hosted checkout or customer page: who buys what from whom, how far they are, and which visit proved its phone.
CREATE TABLE checkout_session (
  checkout_session_id text PRIMARY KEY,
  merchant_id         text NOT NULL REFERENCES merchant,
  mode                text NOT NULL CHECK (mode IN ('subscription', 'credit_bundle', 'topup', 'onboarding', 'portal')),
  state               text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'verified', 'paying', 'completed', 'expired', 'cancelled')),
  origin_url          text NOT NULL, -- as it was given
  secret_hash         bytea NOT NULL UNIQUE,
  secret_sealed       bytea NOT NULL,
  connection_id       text REFERENCES connection, -- null until a new customer's first payment
  reference_id        text,
  plan_id             text REFERENCES plan,
  credit_bundle_id    text REFERENCES credit_bundle,
  offer               jsonb NOT NULL, -- what was for sale when the session was made
  person_id           text REFERENCES person,
  visit_hash          bytea, -- of the visit that proved the phone; no other may act
  amount_cents        bigint CHECK (amount_cents > 0), -- chosen by the customer, in the modes where they choose
  attempt             integer NOT NULL DEFAULT 1, -- numbers the payments: a new one only after a definitive end of the last
  charge_id           text REFERENCES charge,
  created_at          timestamptz NOT NULL,
  expires_at          timestamptz NOT NULL,
  completed_at        timestamptz
);
-- By the time in the id: ids of test keys have another prefix.
CREATE INDEX checkout_session_by_merchant ON checkout_session (merchant_id, right(checkout_session_id, 26) DESC);

-- How a merchant's hosted pages look.
CREATE TABLE merchant_branding (
  merchant_id   text PRIMARY KEY REFERENCES merchant,
  name          text NOT NULL,
  logo          text, -- a data: URL of at most 64 KB
  colour        text, -- #rrggbb
  support_email text,
  updated_at    timestamptz NOT NULL
);

-- migrate:down
-- Forward only: restore a backup instead.
