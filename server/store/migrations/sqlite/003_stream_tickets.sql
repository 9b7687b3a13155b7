-- Tickets for one GET /v1/stream each, good at any replica. A ticket itself is nowhere: `sha256` is the digest of its text, and `body` is
-- sealed with a key that only the ticket gives.
CREATE TABLE stream_tickets (
    sha256            TEXT    NOT NULL PRIMARY KEY,
    user_id           TEXT    NOT NULL,
    tenant_id         TEXT    NOT NULL,
    jti               TEXT,
    token_limit       INTEGER,
    token_expires_at  INTEGER,
    body              BLOB,
    expires_at        INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX idx_stream_tickets_user ON stream_tickets (user_id);
CREATE INDEX idx_stream_tickets_expiry ON stream_tickets (expires_at);
