-- How servers are, as proxies find: from each of them, together, and as it was. The twin of sqlite/0010_health.sql.

-- How a server is from one proxy.
CREATE TABLE server_health (
    tenant     TEXT        NOT NULL REFERENCES tenants (id),
    server_id  UUID        NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    proxy_id   UUID        NOT NULL,
    checks     BOOLEAN     NOT NULL,
    state      TEXT        NOT NULL,
    reason     TEXT        NOT NULL,
    since      TIMESTAMPTZ NOT NULL,
    checked_at TIMESTAMPTZ,
    found      JSONB       NOT NULL,
    -- The latest order that it has answered.
    answered   UUID,
    heard_at   TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (server_id, proxy_id)
);
CREATE INDEX server_health_by_tenant ON server_health (tenant);
CREATE INDEX server_health_by_time ON server_health (heard_at);

-- How a server is from all that look. Its row is also the lock under which they are put together.
CREATE TABLE server_states (
    tenant    TEXT        NOT NULL REFERENCES tenants (id),
    server_id UUID        PRIMARY KEY REFERENCES servers (id) ON DELETE CASCADE,
    state     TEXT        NOT NULL,
    reason    TEXT        NOT NULL,
    since     TIMESTAMPTZ NOT NULL
);
CREATE INDEX server_states_by_tenant ON server_states (tenant);

-- A row a change of state.
CREATE TABLE server_history (
    tenant    TEXT        NOT NULL REFERENCES tenants (id),
    id        UUID        PRIMARY KEY,
    server_id UUID        NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    at        TIMESTAMPTZ NOT NULL,
    state     TEXT        NOT NULL,
    reason    TEXT        NOT NULL
);
CREATE INDEX server_history_by_server ON server_history (tenant, server_id, at);
CREATE INDEX server_history_by_time ON server_history (at);

-- Checks that were asked for: by a row here the other replicas hear of them, whose proxies are to look.
CREATE TABLE check_orders (
    tenant    TEXT        NOT NULL REFERENCES tenants (id),
    id        UUID        PRIMARY KEY,
    server_id UUID        NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    asked_at  TIMESTAMPTZ NOT NULL
);
CREATE INDEX check_orders_by_time ON check_orders (asked_at);

-- As in 0007_row_security.sql.
DO $$
DECLARE
    name TEXT;
    condition TEXT := 'CASE WHEN (SELECT current_setting(''waffles.scope'', true)) = ''everywhere'' THEN true
        ELSE tenant = (SELECT current_setting(''waffles.tenant'', true)) END';
BEGIN
    FOREACH name IN ARRAY ARRAY['server_health', 'server_states', 'server_history', 'check_orders'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY of_tenant ON %I USING (%s) WITH CHECK (%s)', name, condition, condition);
    END LOOP;
END
$$;
