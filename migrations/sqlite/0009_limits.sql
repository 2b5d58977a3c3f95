-- Limits of tenants. The twin of postgres/0009_limits.sql.
CREATE TABLE limits (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL REFERENCES tenants (id),
    name       TEXT    NOT NULL,
    spec       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    UNIQUE (tenant, name)
);

-- What proxies said last of how much of a limit is used: the callers that used most of it. Written over, never added up.
CREATE TABLE limit_usage (
    tenant   TEXT NOT NULL REFERENCES tenants (id),
    limit_id BLOB NOT NULL,
    proxy    BLOB NOT NULL,
    used     TEXT NOT NULL,
    noted_at TEXT NOT NULL,
    PRIMARY KEY (tenant, limit_id, proxy)
);
