-- Who did what, when and from where. Rows are only ever added: the triggers refuse every other change.
-- `number` is an event's place in the log. `count` events of one kind between `at` and `until` are one row.
CREATE TABLE audit_log (
    number      INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    at          INTEGER NOT NULL,
    until       INTEGER NOT NULL,
    count       INTEGER NOT NULL,
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

CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END;
CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END;

-- For the job that deletes old rows of usage.
CREATE INDEX idx_api_usage_created ON api_usage (created_at);
