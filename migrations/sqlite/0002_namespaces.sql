-- Namespaces, and what proxies found servers to speak. The twin of postgres/0002_namespaces.sql. The control plane makes
-- the namespace `default` of each tenant when it starts.

CREATE TABLE namespaces (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL REFERENCES tenants (id),
    name       TEXT    NOT NULL,
    spec       TEXT    NOT NULL,
    is_default BOOLEAN NOT NULL,
    version    INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    UNIQUE (tenant, name)
);

-- The control plane takes a server out of its namespaces before it goes; one of the version before does not know how,
-- hence the cascade.
CREATE TABLE namespace_servers (
    tenant       TEXT NOT NULL REFERENCES tenants (id),
    namespace_id BLOB NOT NULL REFERENCES namespaces (id) ON DELETE CASCADE,
    server_id    BLOB NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    member       TEXT NOT NULL,
    PRIMARY KEY (namespace_id, server_id)
);
CREATE INDEX namespace_servers_by_server ON namespace_servers (server_id);

-- What proxies, which serve every tenant, found at the endpoints of servers. A row may outlive its server.
CREATE TABLE server_eras (
    proxy_id  BLOB    NOT NULL,
    server_id BLOB    NOT NULL,
    endpoint  INTEGER NOT NULL,
    era       TEXT    NOT NULL,
    revision  TEXT    NOT NULL,
    found_at  TEXT    NOT NULL,
    PRIMARY KEY (proxy_id, server_id, endpoint)
);
CREATE INDEX server_eras_by_server ON server_eras (server_id);
