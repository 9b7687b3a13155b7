-- Usage analytics: what each hour was like, and what was unusual about it. One row for each hour, subject and kind. The subject is a model of a
-- tenant, a tenant (`model` is empty), or the service (`tenant_id` is `*`). Times are milliseconds since 1970 in UTC; `hour` is the first one.
-- `partial` is 1 until the hour is over and complete.
CREATE TABLE insights (
    tenant_id        TEXT    NOT NULL,
    model            TEXT    NOT NULL,
    kind             TEXT    NOT NULL,
    hour             BIGINT  NOT NULL,
    partial          BIGINT  NOT NULL,
    value            DOUBLE PRECISION NOT NULL,
    baseline         DOUBLE PRECISION,
    message          TEXT    NOT NULL,
    requests         BIGINT  NOT NULL,
    failures         BIGINT  NOT NULL,
    prompt_tokens    BIGINT  NOT NULL,
    generated_tokens BIGINT  NOT NULL,
    p50_ms           BIGINT,
    p95_ms           BIGINT,
    busiest_model    TEXT,
    cost             TEXT,
    made_at          BIGINT  NOT NULL,
    PRIMARY KEY (tenant_id, model, kind, hour)
);

CREATE INDEX idx_insights_hour ON insights (hour);

ALTER TABLE insights ENABLE ROW LEVEL SECURITY;
ALTER TABLE insights FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON insights USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));
