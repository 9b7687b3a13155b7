-- Rows of the audit log can be removed by the retention, and in no other way: they are 30 days old, and the newest row is an `audit.remove`
-- that covers them. So the log has a record of each removal.
CREATE FUNCTION audit_log_is_removable() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    removal json;
BEGIN
    SELECT detail::json INTO removal FROM audit_log
        WHERE number = (SELECT max(number) FROM audit_log) AND action = 'audit.remove';
    IF (OLD.until < (extract(epoch FROM clock_timestamp()) - 30 * 86400) * 1000
        AND OLD.number BETWEEN (removal ->> 'first')::bigint AND (removal ->> 'last')::bigint) IS NOT TRUE THEN
        RAISE EXCEPTION 'audit_log is append-only: only rows of more than 30 days can be removed, with a record of it'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN OLD;
END
$$;

DROP TRIGGER audit_log_append_only ON audit_log;
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only();
CREATE TRIGGER audit_log_removal BEFORE DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_is_removable();
