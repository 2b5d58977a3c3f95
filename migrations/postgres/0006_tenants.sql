-- What a tenant may have and whether it is suspended, and row-level security. The twin of sqlite/0006_tenants.sql.

ALTER TABLE tenants ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE tenants ADD COLUMN suspended_at TIMESTAMPTZ;
-- None is as many as one likes.
ALTER TABLE tenants ADD COLUMN max_servers BIGINT;
ALTER TABLE tenants ADD COLUMN max_principals BIGINT;
ALTER TABLE tenants ADD COLUMN max_api_keys BIGINT;

-- Every table with a tenant, of this migration and of those before it, shows the rows of the tenant that the connection
-- was told, or all where it was told so, and none where it was told nothing. Forced: the owner is held to it too. The
-- sub-selects are run once a statement, not once a row.
DO $$
DECLARE
    found RECORD;
    column_name TEXT;
    condition TEXT;
BEGIN
    FOR found IN
        SELECT c.oid::regclass::text AS name, c.relname, c.relispartition FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
            AND (c.relname = 'tenants' OR EXISTS (SELECT 1 FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped))
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', found.name);
        -- A partition is reached through its parent, whose policy counts. By itself it shows nothing.
        IF NOT found.relispartition THEN
            column_name := CASE WHEN found.relname = 'tenants' THEN 'id' ELSE 'tenant' END;
            condition := format(
                '%I = (SELECT current_setting(''waffles.tenant'', true))
                OR (SELECT current_setting(''waffles.scope'', true)) = ''everywhere''', column_name);
            EXECUTE format('CREATE POLICY of_tenant ON %s USING (%s) WITH CHECK (%s)',
                found.name, condition, condition);
        END IF;
    END LOOP;
END
$$;
