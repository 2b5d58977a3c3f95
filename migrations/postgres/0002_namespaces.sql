-- Namespaces, and what proxies found servers to speak. The twin of sqlite/0002_namespaces.sql. The control plane makes
-- the namespace `default` of each tenant when it starts.

CREATE TABLE namespaces (
    id         UUID        NOT NULL PRIMARY KEY,
    tenant     TEXT        NOT NULL REFERENCES tenants (id),
    name       TEXT        NOT NULL,
    spec       JSONB       NOT NULL,
    is_default BOOLEAN     NOT NULL,
    version    BIGINT      NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    UNIQUE (tenant, name)
);

-- The control plane takes a server out of its namespaces before it goes; one of the version before does not know how,
-- hence the cascade.
CREATE TABLE namespace_servers (
    tenant       TEXT  NOT NULL REFERENCES tenants (id),
    namespace_id UUID  NOT NULL REFERENCES namespaces (id) ON DELETE CASCADE,
    server_id    UUID  NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    member       JSONB NOT NULL,
    PRIMARY KEY (namespace_id, server_id)
);
CREATE INDEX namespace_servers_by_server ON namespace_servers (server_id);

-- What proxies, which serve every tenant, found at the endpoints of servers. A row may outlive its server.
CREATE TABLE server_eras (
    proxy_id  UUID        NOT NULL,
    server_id UUID        NOT NULL,
    endpoint  BIGINT      NOT NULL,
    era       TEXT        NOT NULL,
    revision  TEXT        NOT NULL,
    found_at  TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (proxy_id, server_id, endpoint)
);
CREATE INDEX server_eras_by_server ON server_eras (server_id);
