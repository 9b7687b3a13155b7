-- What a request cost, in billionths of the currency, at the price of its time. NULL where no price was set.
-- Sums are those of `cost_nanos`. `cost_cents` has whole cents, with remainders carried from request to request.
ALTER TABLE api_usage ADD COLUMN cost_nanos BIGINT;
ALTER TABLE api_usage ADD COLUMN currency TEXT;
