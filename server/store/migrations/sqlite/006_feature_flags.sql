-- Feature flags that operators changed. A change is in effect while the environment has the value that it replaced: `replaces`, as JSON;
-- without one, while the environment does not have the flag.
CREATE TABLE feature_flags (
    name        TEXT    NOT NULL PRIMARY KEY,
    enabled     INTEGER NOT NULL,
    percent     INTEGER NOT NULL CHECK (percent BETWEEN 0 AND 100),
    tenants     TEXT    NOT NULL,
    model       TEXT,
    replaces    TEXT,
    changed_at  INTEGER NOT NULL,
    changed_by  TEXT    NOT NULL
) WITHOUT ROWID;
