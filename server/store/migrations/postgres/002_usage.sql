-- Append only: one row per answered request, without any text of it. `rowid` is a row's place in this log, as in SQLite.
CREATE TABLE api_usage (
    rowid              BIGINT  NOT NULL GENERATED ALWAYS AS IDENTITY,
    id                 TEXT    NOT NULL PRIMARY KEY,
    request_id         TEXT    NOT NULL,
    user_id            TEXT    NOT NULL,
    tenant_id          TEXT    NOT NULL,
    endpoint           TEXT    NOT NULL,
    model              TEXT,
    prompt_tokens      BIGINT  NOT NULL,
    generated_tokens   BIGINT  NOT NULL,
    tokens_used        BIGINT  NOT NULL,
    cost_cents         BIGINT,
    generation_time_ms BIGINT  NOT NULL,
    status             BIGINT  NOT NULL,
    created_at         BIGINT  NOT NULL
);

CREATE UNIQUE INDEX idx_api_usage_rowid ON api_usage (rowid);
CREATE INDEX idx_api_usage_user_date ON api_usage (user_id, created_at);
CREATE INDEX idx_api_usage_tenant_date ON api_usage (tenant_id, created_at);

ALTER TABLE api_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_usage FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON api_usage USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));
