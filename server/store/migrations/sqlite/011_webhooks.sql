-- Events for the webhooks of the configuration. A row exists until its event is delivered or given up. `webhook` is the id of one webhook. A
-- claimed row is due again at `available_at`, in case its server is gone. Times are milliseconds since 1970 in UTC.
CREATE TABLE webhook_deliveries (
    id           TEXT   NOT NULL PRIMARY KEY,
    tenant_id    TEXT   NOT NULL,
    webhook      TEXT   NOT NULL,
    event        TEXT   NOT NULL,
    object_id    TEXT   NOT NULL,
    created_at   INTEGER NOT NULL,
    available_at INTEGER NOT NULL,
    claim        TEXT   NOT NULL,
    attempts     INTEGER NOT NULL
);

CREATE INDEX idx_webhook_deliveries_due ON webhook_deliveries (webhook, available_at, id);
CREATE INDEX idx_webhook_deliveries_tenant ON webhook_deliveries (tenant_id, id);
