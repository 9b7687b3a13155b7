-- What the mean lengths and the data quality of an hour follow from: requests with a text, answers of the endpoints that generate, those of them
-- without a token, and requests whose input was refused. 0 in hours before this schema: they are in no baseline of these.
ALTER TABLE insights ADD COLUMN prompts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE insights ADD COLUMN answers BIGINT NOT NULL DEFAULT 0;
ALTER TABLE insights ADD COLUMN empty_answers BIGINT NOT NULL DEFAULT 0;
ALTER TABLE insights ADD COLUMN invalid_requests BIGINT NOT NULL DEFAULT 0;
