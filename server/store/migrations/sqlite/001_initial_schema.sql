-- Tenants, keys, allowances, budgets and usage. Times are milliseconds since 1970 in UTC.

CREATE TABLE tenants (
    id          TEXT    NOT NULL PRIMARY KEY,
    created_at  INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO tenants (id, created_at) VALUES ('default', 0);

-- A key itself is nowhere: `sha256` is the digest of its whole text.
CREATE TABLE api_keys (
    public_id         TEXT    NOT NULL PRIMARY KEY,
    sha256            TEXT    NOT NULL,
    tenant_id         TEXT    NOT NULL REFERENCES tenants (id),
    name              TEXT    NOT NULL,
    scopes            TEXT    NOT NULL,
    rate_limit        TEXT,
    token_rate_limit  TEXT,
    token_limit       INTEGER,
    created_at        INTEGER NOT NULL,
    expires_at        INTEGER,
    revoked_at        INTEGER
) WITHOUT ROWID;

CREATE INDEX idx_api_keys_tenant ON api_keys (tenant_id);

-- How far a key has used up its rate: the theoretical arrival time of the next unit.
CREATE TABLE allowances (
    subject     TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    arrival_ms  REAL    NOT NULL,
    PRIMARY KEY (subject, kind)
) WITHOUT ROWID;

-- What a token of /auth/token may spend. Reserved before the work, settled after it.
CREATE TABLE token_budgets (
    jti          TEXT    NOT NULL PRIMARY KEY,
    token_limit  INTEGER NOT NULL,
    reserved     INTEGER NOT NULL DEFAULT 0,
    used         INTEGER NOT NULL DEFAULT 0,
    expires_at   INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX idx_token_budgets_expiry ON token_budgets (expires_at);
