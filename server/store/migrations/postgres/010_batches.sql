-- Batches of requests. `batch_files` are files of requests (uploaded) and of results (written by batches), with a row of `batch_lines` for each
-- line. `batch_requests` is the queue: a row for each request without a result. A claimed row is due again at `available_at`, in case its
-- server is gone. The state of a file is `open` (it is written), `complete` or `deleting`. Times are milliseconds since 1970 in UTC.
CREATE TABLE batch_files (
    id          TEXT   NOT NULL PRIMARY KEY,
    tenant_id   TEXT   NOT NULL,
    purpose     TEXT   NOT NULL,
    filename    TEXT   NOT NULL,
    endpoint    TEXT   NOT NULL,
    bytes       BIGINT NOT NULL,
    lines       BIGINT NOT NULL,
    state       TEXT   NOT NULL,
    created_at  BIGINT NOT NULL
);

CREATE INDEX idx_batch_files_tenant ON batch_files (tenant_id, id);

CREATE TABLE batch_lines (
    tenant_id TEXT   NOT NULL,
    file_id   TEXT   NOT NULL,
    number    BIGINT NOT NULL,
    content   TEXT   NOT NULL,
    PRIMARY KEY (file_id, number)
);

CREATE TABLE batches (
    id           TEXT   NOT NULL PRIMARY KEY,
    tenant_id    TEXT   NOT NULL,
    user_id      TEXT   NOT NULL,
    endpoint     TEXT   NOT NULL,
    input_file   TEXT   NOT NULL,
    output_file  TEXT   NOT NULL,
    error_file   TEXT   NOT NULL,
    state        TEXT   NOT NULL,
    reason       TEXT,
    metadata     TEXT   NOT NULL,
    total        BIGINT NOT NULL,
    completed    BIGINT NOT NULL,
    failed       BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    ending_at    BIGINT,
    ended_at     BIGINT,
    paused_until BIGINT NOT NULL,
    served_at    BIGINT NOT NULL
);

CREATE INDEX idx_batches_tenant ON batches (tenant_id, id);
CREATE INDEX idx_batches_state ON batches (state);
CREATE INDEX idx_batches_served ON batches (tenant_id, served_at);
CREATE INDEX idx_batches_input ON batches (input_file);

CREATE TABLE batch_requests (
    tenant_id    TEXT   NOT NULL,
    batch_id     TEXT   NOT NULL,
    number       BIGINT NOT NULL,
    available_at BIGINT NOT NULL,
    claim        TEXT   NOT NULL,
    attempts     BIGINT NOT NULL,
    PRIMARY KEY (batch_id, number)
);

CREATE INDEX idx_batch_requests_due ON batch_requests (batch_id, available_at, number);

ALTER TABLE batch_files ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_files FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON batch_files USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));

ALTER TABLE batch_lines ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_lines FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON batch_lines USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));

ALTER TABLE batches ENABLE ROW LEVEL SECURITY;
ALTER TABLE batches FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON batches USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));

ALTER TABLE batch_requests ENABLE ROW LEVEL SECURITY;
ALTER TABLE batch_requests FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON batch_requests USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));
