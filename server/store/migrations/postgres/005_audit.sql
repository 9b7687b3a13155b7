-- Who did what, when and from where. Rows are only ever added: the trigger refuses every other change, also to the owner of the table.
-- `number` is an event's place in the log. `count` events of one kind between `at` and `until` are one row.
CREATE TABLE audit_log (
    number      BIGINT  NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          TEXT    NOT NULL UNIQUE,
    at          BIGINT  NOT NULL,
    until       BIGINT  NOT NULL,
    count       BIGINT  NOT NULL,
    actor_kind  TEXT    NOT NULL,
    actor       TEXT    NOT NULL,
    action      TEXT    NOT NULL,
    outcome     TEXT    NOT NULL,
    object      TEXT,
    tenant_id   TEXT,
    source      TEXT,
    request_id  TEXT,
    detail      TEXT
);

CREATE INDEX idx_audit_log_at ON audit_log (at);

ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_log FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON audit_log USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));

CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only();

-- For the job that deletes old rows of usage.
CREATE INDEX idx_api_usage_created ON api_usage (created_at);
