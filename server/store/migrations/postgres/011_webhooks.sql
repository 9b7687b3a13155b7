-- Events for the webhooks of the configuration. A row exists until its event is delivered or given up. `webhook` is the id of one webhook. A
-- claimed row is due again at `available_at`, in case its server is gone. Times are milliseconds since 1970 in UTC.
CREATE TABLE webhook_deliveries (
    id           TEXT   NOT NULL PRIMARY KEY,
    tenant_id    TEXT   NOT NULL,
    webhook      TEXT   NOT NULL,
    event        TEXT   NOT NULL,
    object_id    TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    available_at BIGINT NOT NULL,
    claim        TEXT   NOT NULL,
    attempts     BIGINT NOT NULL
);

CREATE INDEX idx_webhook_deliveries_due ON webhook_deliveries (webhook, available_at, id);
CREATE INDEX idx_webhook_deliveries_tenant ON webhook_deliveries (tenant_id, id);

ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhook_deliveries FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON webhook_deliveries USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));
