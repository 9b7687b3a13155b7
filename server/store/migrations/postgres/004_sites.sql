-- Where a row of usage was made, when that was another site; empty for this one. Rows of all sites are one union by their ids.
ALTER TABLE api_usage ADD COLUMN site TEXT NOT NULL DEFAULT '';

CREATE INDEX idx_api_usage_request ON api_usage (request_id);

-- Public halves of the keys with which sites sign tokens of /auth/token, as JWK.
CREATE TABLE verifiers (
    site  TEXT  NOT NULL PRIMARY KEY,
    kid   TEXT  NOT NULL,
    jwk   TEXT  NOT NULL
);
