-- Append only: one row per answered request, without any text of it.
CREATE TABLE api_usage (
    id                 TEXT    NOT NULL PRIMARY KEY,
    request_id         TEXT    NOT NULL,
    user_id            TEXT    NOT NULL,
    tenant_id          TEXT    NOT NULL,
    endpoint           TEXT    NOT NULL,
    model              TEXT,
    prompt_tokens      INTEGER NOT NULL,
    generated_tokens   INTEGER NOT NULL,
    tokens_used        INTEGER NOT NULL,
    cost_cents         INTEGER,
    generation_time_ms INTEGER NOT NULL,
    status             INTEGER NOT NULL,
    created_at         INTEGER NOT NULL
);

CREATE INDEX idx_api_usage_user_date ON api_usage (user_id, created_at);
CREATE INDEX idx_api_usage_tenant_date ON api_usage (tenant_id, created_at);
