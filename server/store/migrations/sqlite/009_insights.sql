-- Usage analytics: what each hour was like, and what was unusual about it. One row for each hour, subject and kind. The subject is a model of a
-- tenant, a tenant (`model` is empty), or the service (`tenant_id` is `*`). Times are milliseconds since 1970 in UTC; `hour` is the first one.
-- `partial` is 1 until the hour is over and complete.
CREATE TABLE insights (
    tenant_id        TEXT    NOT NULL,
    model            TEXT    NOT NULL,
    kind             TEXT    NOT NULL,
    hour             INTEGER NOT NULL,
    partial          INTEGER NOT NULL,
    value            REAL    NOT NULL,
    baseline         REAL,
    message          TEXT    NOT NULL,
    requests         INTEGER NOT NULL,
    failures         INTEGER NOT NULL,
    prompt_tokens    INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    p50_ms           INTEGER,
    p95_ms           INTEGER,
    busiest_model    TEXT,
    cost             TEXT,
    made_at          INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, model, kind, hour)
) WITHOUT ROWID;

CREATE INDEX idx_insights_hour ON insights (hour);
