-- The trigger that everybody writes.
CREATE FUNCTION notify_bridge() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    r record := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
BEGIN
    PERFORM pg_notify('bridge', json_build_object(
        'channel', TG_TABLE_NAME || ':' || r.customer_id, 'op', TG_OP, 'row', row_to_json(r))::text);
    RETURN NULL;
END $$;
CREATE TRIGGER notify_bridge AFTER INSERT OR UPDATE OR DELETE ON orders
    FOR EACH ROW EXECUTE FUNCTION notify_bridge();
CREATE TRIGGER notify_bridge AFTER INSERT OR UPDATE OR DELETE ON many
    FOR EACH ROW EXECUTE FUNCTION notify_bridge();
