-- How servers are, as proxies find: from each of them, together, and as it was. The twin of postgres/0010_health.sql.

-- How a server is from one proxy.
CREATE TABLE server_health (
    tenant     TEXT        NOT NULL REFERENCES tenants (id),
    server_id  BLOB        NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    proxy_id   BLOB        NOT NULL,
    checks     BOOLEAN     NOT NULL,
    state      TEXT        NOT NULL,
    reason     TEXT        NOT NULL,
    since      TEXT        NOT NULL,
    checked_at TEXT,
    found      TEXT        NOT NULL,
    -- The latest order that it has answered.
    answered   BLOB,
    heard_at   TEXT        NOT NULL,
    PRIMARY KEY (server_id, proxy_id)
);
CREATE INDEX server_health_by_tenant ON server_health (tenant);
CREATE INDEX server_health_by_time ON server_health (heard_at);

-- How a server is from all that look. Its row is also the lock under which they are put together.
CREATE TABLE server_states (
    tenant    TEXT        NOT NULL REFERENCES tenants (id),
    server_id BLOB        PRIMARY KEY REFERENCES servers (id) ON DELETE CASCADE,
    state     TEXT        NOT NULL,
    reason    TEXT        NOT NULL,
    since     TEXT        NOT NULL
);
CREATE INDEX server_states_by_tenant ON server_states (tenant);

-- A row a change of state.
CREATE TABLE server_history (
    tenant    TEXT        NOT NULL REFERENCES tenants (id),
    id        BLOB        PRIMARY KEY,
    server_id BLOB        NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    at        TEXT        NOT NULL,
    state     TEXT        NOT NULL,
    reason    TEXT        NOT NULL
);
CREATE INDEX server_history_by_server ON server_history (tenant, server_id, at);
CREATE INDEX server_history_by_time ON server_history (at);

-- Checks that were asked for: by a row here the other replicas hear of them, whose proxies are to look.
CREATE TABLE check_orders (
    tenant    TEXT        NOT NULL REFERENCES tenants (id),
    id        BLOB        PRIMARY KEY,
    server_id BLOB        NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    asked_at  TEXT        NOT NULL
);
CREATE INDEX check_orders_by_time ON check_orders (asked_at);
