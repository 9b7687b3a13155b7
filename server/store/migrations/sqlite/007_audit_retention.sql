-- Rows of the audit log can be removed by the retention, and in no other way: they are 30 days old, and the newest row is an `audit.remove`
-- that covers them. So the log has a record of each removal.
DROP TRIGGER audit_log_no_delete;
CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log
WHEN OLD.until > (CAST(strftime('%s', 'now') AS INTEGER) - 30 * 86400) * 1000
    OR NOT EXISTS (
        SELECT 1 FROM audit_log WHERE number = (SELECT max(number) FROM audit_log) AND action = 'audit.remove'
            AND OLD.number BETWEEN json_extract(detail, '$.first') AND json_extract(detail, '$.last')
    )
BEGIN SELECT RAISE(ABORT, 'audit_log is append-only: only rows of more than 30 days can be removed, with a record of it'); END;
