-- Tickets for one GET /v1/stream each, good at any replica. A ticket itself is nowhere: `sha256` is the digest of its text, and `body` is
-- sealed with a key that only the ticket gives.
CREATE TABLE stream_tickets (
    sha256            TEXT    NOT NULL PRIMARY KEY,
    user_id           TEXT    NOT NULL,
    tenant_id         TEXT    NOT NULL,
    jti               TEXT,
    token_limit       BIGINT,
    token_expires_at  BIGINT,
    body              BYTEA,
    expires_at        BIGINT  NOT NULL
);

CREATE INDEX idx_stream_tickets_user ON stream_tickets (user_id);
CREATE INDEX idx_stream_tickets_expiry ON stream_tickets (expires_at);

ALTER TABLE stream_tickets ENABLE ROW LEVEL SECURITY;
ALTER TABLE stream_tickets FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON stream_tickets USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));
