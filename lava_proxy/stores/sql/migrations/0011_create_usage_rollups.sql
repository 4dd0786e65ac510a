-- migrate:up
-- What a request counts for in rollups, as stores/usage_rollup.py has it too. Absent dimensions are '', so that no key is nullable.
-- Usage comes from strangers: what is no number counts as 0; no count is more than a trillion, no cost more than $900,000.
CREATE FUNCTION usage_units(usage jsonb, name text) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN jsonb_typeof(usage -> name) = 'number'
    THEN least(greatest((usage -> name)::numeric, 0), 1000000000000) ELSE 0 END
$$;

CREATE VIEW usage_fact AS
SELECT r.merchant_id, date_bin('15 minutes', r.created_at, 'epoch'::timestamptz) AS bucket,
  coalesce(r.connection_id, '') AS connection_id, coalesce(r.meter_id, '') AS meter_id, left(r.provider, 64) AS provider,
  -- A name that the provider did not know makes no row: callers could make up any number of them.
  CASE WHEN r.status = 'error' AND NOT r.billed AND r.http_status IN (400, 404) THEN ''
    ELSE coalesce(left(r.model, 128), '') END AS model,
  r.outcome, r.provenance,
  1 AS requests,
  (r.status = 'error')::int AS errors,
  trunc(usage_units(r.usage, 'input_tokens'))::bigint AS input_tokens,
  trunc(usage_units(r.usage, 'output_tokens'))::bigint AS output_tokens,
  trunc(usage_units(r.usage, 'input_characters'))::bigint AS input_characters,
  trunc(usage_units(r.usage, 'output_characters'))::bigint AS output_characters,
  -- Providers report the length of one recording: heard by a transcription, made by a speech call.
  round(1000000 * CASE WHEN s.given OR r.api = 'speech' THEN usage_units(r.usage, 'input_seconds')
    ELSE usage_units(r.usage, 'audio_seconds') END)::bigint AS input_micros,
  round(1000000 * CASE WHEN NOT s.given AND r.api = 'speech' THEN usage_units(r.usage, 'audio_seconds')
    ELSE usage_units(r.usage, 'output_seconds') END)::bigint AS output_micros,
  c.cost AS cost_nanos,
  r.charge_nanos,
  -- Older clients split a charge: the fee is what comes on top of a cost that was passed on; the merchant bears a cost that
  -- was not, unless the caller's own key has paid it. The net is what the merchant keeps of what its customers paid.
  CASE WHEN p.passed_on THEN greatest(0, r.charge_nanos - c.cost) ELSE r.charge_nanos END AS fee_nanos,
  CASE WHEN r.connection_id IS NULL THEN 0 ELSE r.charge_nanos END AS wallet_nanos,
  CASE WHEN p.passed_on OR r.provider_key_type = 'unmanaged' THEN 0 ELSE c.cost END
    + CASE WHEN r.connection_id IS NULL THEN r.charge_nanos ELSE 0 END AS merchant_nanos,
  CASE WHEN r.connection_id IS NULL THEN 0
    ELSE r.charge_nanos - CASE WHEN r.provider_key_type = 'unmanaged' THEN 0 ELSE c.cost END END AS net_nanos,
  r.created_at, r.request_id, r.metadata
FROM request r LEFT JOIN meter_version v ON v.version_id = r.meter_version
CROSS JOIN LATERAL (SELECT least(greatest(r.cost_nanos, 0), 900000000000000) AS cost) c
CROSS JOIN LATERAL (SELECT (v.rate_type IS NULL OR v.rate_type = 'percentage') AND r.charge_nanos > 0
  AND r.provider_key_type <> 'unmanaged' AS passed_on) p
CROSS JOIN LATERAL (SELECT usage_units(r.usage, 'input_seconds') > 0 OR usage_units(r.usage, 'output_seconds') > 0 AS given) s;

-- Sums that stop at the largest number instead of stopping the flusher.
CREATE FUNCTION bounded(amount numeric) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT greatest(least(amount, 9223372036854775807), -9223372036854775807)::bigint
$$;

CREATE TABLE usage_by_meter (
  merchant_id       text NOT NULL,
  bucket            timestamptz NOT NULL, -- the first instant of 15 minutes
  meter_id          text NOT NULL,
  outcome           text NOT NULL,
  provenance        text NOT NULL,
  requests          bigint NOT NULL,
  errors            bigint NOT NULL,
  input_tokens      bigint NOT NULL,
  output_tokens     bigint NOT NULL,
  input_characters  bigint NOT NULL,
  output_characters bigint NOT NULL,
  input_micros      bigint NOT NULL,
  output_micros     bigint NOT NULL,
  cost_nanos        bigint NOT NULL,
  charge_nanos      bigint NOT NULL,
  fee_nanos         bigint NOT NULL,
  wallet_nanos      bigint NOT NULL,
  merchant_nanos    bigint NOT NULL,
  net_nanos         bigint NOT NULL,
  PRIMARY KEY (merchant_id, bucket, meter_id, outcome, provenance)
) WITH (fillfactor = 70); -- the newest rows are updated again and again: room to do so in place

CREATE TABLE usage_by_model (LIKE usage_by_meter) WITH (fillfactor = 70);
ALTER TABLE usage_by_model DROP COLUMN outcome, DROP COLUMN provenance,
  ADD COLUMN provider text NOT NULL, ADD COLUMN model text NOT NULL,
  ADD PRIMARY KEY (merchant_id, bucket, meter_id, provider, model);

CREATE TABLE usage_by_customer (LIKE usage_by_model) WITH (fillfactor = 70);
ALTER TABLE usage_by_customer ADD COLUMN connection_id text NOT NULL,
  ADD PRIMARY KEY (merchant_id, connection_id, bucket, meter_id, provider, model);
CREATE INDEX usage_by_customer_bucket ON usage_by_customer (merchant_id, bucket);

-- Whole UTC days, so that comparing all customers or models over months does not read each one's quarter hours.
CREATE TABLE usage_by_customer_day (LIKE usage_by_customer) WITH (fillfactor = 70);
ALTER TABLE usage_by_customer_day DROP COLUMN provider, DROP COLUMN model,
  ADD PRIMARY KEY (merchant_id, bucket, connection_id, meter_id);

CREATE TABLE usage_by_model_day (LIKE usage_by_model) WITH (fillfactor = 70);
ALTER TABLE usage_by_model_day ADD PRIMARY KEY (merchant_id, bucket, meter_id, provider, model);

-- A window's ragged ends and exports by time read rows; rows lie nearly in the order of their time.
CREATE INDEX request_created ON request USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);

CREATE FUNCTION rebuild_usage() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7229004); -- flushes wait, each with rows that this cannot see yet
  DELETE FROM usage_by_meter;
  DELETE FROM usage_by_model;
  DELETE FROM usage_by_customer;
  DELETE FROM usage_by_customer_day;
  DELETE FROM usage_by_model_day;
  CREATE TEMPORARY TABLE usage_found ON COMMIT DROP AS
  SELECT merchant_id, bucket, connection_id, meter_id, provider, model, outcome, provenance,
    bounded(sum(requests)) AS requests, bounded(sum(errors)) AS errors, bounded(sum(input_tokens)) AS input_tokens,
    bounded(sum(output_tokens)) AS output_tokens, bounded(sum(input_characters)) AS input_characters,
    bounded(sum(output_characters)) AS output_characters, bounded(sum(input_micros)) AS input_micros,
    bounded(sum(output_micros)) AS output_micros, bounded(sum(cost_nanos)) AS cost_nanos, bounded(sum(charge_nanos)) AS
    charge_nanos, bounded(sum(fee_nanos)) AS fee_nanos, bounded(sum(wallet_nanos)) AS wallet_nanos,
    bounded(sum(merchant_nanos)) AS merchant_nanos, bounded(sum(net_nanos)) AS net_nanos
  FROM usage_fact GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;
  INSERT INTO usage_by_meter (merchant_id, bucket, meter_id, outcome, provenance,
    requests, errors, input_tokens, output_tokens, input_characters, output_characters, input_micros, output_micros,
    cost_nanos, charge_nanos, fee_nanos, wallet_nanos, merchant_nanos, net_nanos)
  SELECT merchant_id, bucket, meter_id, outcome, provenance,
    bounded(sum(requests)), bounded(sum(errors)), bounded(sum(input_tokens)), bounded(sum(output_tokens)),
    bounded(sum(input_characters)), bounded(sum(output_characters)), bounded(sum(input_micros)), bounded(sum(output_micros)),
    bounded(sum(cost_nanos)), bounded(sum(charge_nanos)), bounded(sum(fee_nanos)), bounded(sum(wallet_nanos)),
    bounded(sum(merchant_nanos)), bounded(sum(net_nanos))
  FROM usage_found GROUP BY 1, 2, 3, 4, 5;
  INSERT INTO usage_by_model (merchant_id, bucket, meter_id, provider, model,
    requests, errors, input_tokens, output_tokens, input_characters, output_characters, input_micros, output_micros,
    cost_nanos, charge_nanos, fee_nanos, wallet_nanos, merchant_nanos, net_nanos)
  SELECT merchant_id, bucket, meter_id, provider, model,
    bounded(sum(requests)), bounded(sum(errors)), bounded(sum(input_tokens)), bounded(sum(output_tokens)),
    bounded(sum(input_characters)), bounded(sum(output_characters)), bounded(sum(input_micros)), bounded(sum(output_micros)),
    bounded(sum(cost_nanos)), bounded(sum(charge_nanos)), bounded(sum(fee_nanos)), bounded(sum(wallet_nanos)),
    bounded(sum(merchant_nanos)), bounded(sum(net_nanos))
  FROM usage_found GROUP BY 1, 2, 3, 4, 5;
  INSERT INTO usage_by_customer (merchant_id, connection_id, bucket, meter_id, provider, model,
    requests, errors, input_tokens, output_tokens, input_characters, output_characters, input_micros, output_micros,
    cost_nanos, charge_nanos, fee_nanos, wallet_nanos, merchant_nanos, net_nanos)
  SELECT merchant_id, connection_id, bucket, meter_id, provider, model,
    bounded(sum(requests)), bounded(sum(errors)), bounded(sum(input_tokens)), bounded(sum(output_tokens)),
    bounded(sum(input_characters)), bounded(sum(output_characters)), bounded(sum(input_micros)), bounded(sum(output_micros)),
    bounded(sum(cost_nanos)), bounded(sum(charge_nanos)), bounded(sum(fee_nanos)), bounded(sum(wallet_nanos)),
    bounded(sum(merchant_nanos)), bounded(sum(net_nanos))
  FROM usage_found GROUP BY 1, 2, 3, 4, 5, 6;
  INSERT INTO usage_by_customer_day (merchant_id, bucket, connection_id, meter_id,
    requests, errors, input_tokens, output_tokens, input_characters, output_characters, input_micros, output_micros,
    cost_nanos, charge_nanos, fee_nanos, wallet_nanos, merchant_nanos, net_nanos)
  SELECT merchant_id, date_bin('1 day', bucket, 'epoch'::timestamptz), connection_id, meter_id,
    bounded(sum(requests)), bounded(sum(errors)), bounded(sum(input_tokens)), bounded(sum(output_tokens)),
    bounded(sum(input_characters)), bounded(sum(output_characters)), bounded(sum(input_micros)), bounded(sum(output_micros)),
    bounded(sum(cost_nanos)), bounded(sum(charge_nanos)), bounded(sum(fee_nanos)), bounded(sum(wallet_nanos)),
    bounded(sum(merchant_nanos)), bounded(sum(net_nanos))
  FROM usage_found GROUP BY 1, 2, 3, 4;
  INSERT INTO usage_by_model_day (merchant_id, bucket, meter_id, provider, model,
    requests, errors, input_tokens, output_tokens, input_characters, output_characters, input_micros, output_micros,
    cost_nanos, charge_nanos, fee_nanos, wallet_nanos, merchant_nanos, net_nanos)
  SELECT merchant_id, date_bin('1 day', bucket, 'epoch'::timestamptz), meter_id, provider, model,
    bounded(sum(requests)), bounded(sum(errors)), bounded(sum(input_tokens)), bounded(sum(output_tokens)),
    bounded(sum(input_characters)), bounded(sum(output_characters)), bounded(sum(input_micros)), bounded(sum(output_micros)),
    bounded(sum(cost_nanos)), bounded(sum(charge_nanos)), bounded(sum(fee_nanos)), bounded(sum(wallet_nanos)),
    bounded(sum(merchant_nanos)), bounded(sum(net_nanos))
  FROM usage_found GROUP BY 1, 2, 3, 4, 5;
  DROP TABLE usage_found;
END $$;
SELECT rebuild_usage();

-- migrate:down
-- Forward only: restore a backup instead.
