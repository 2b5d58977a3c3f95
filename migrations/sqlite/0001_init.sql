-- The first schema. The twin of postgres/0001_init.sql: the same tables and columns, in SQLite's types.
-- UUIDs are 16-byte BLOBs, times are RFC 3339 texts in UTC (which sort as the times do), JSON is TEXT.

-- One row: what this database is.
CREATE TABLE meta (
    only_row   INTEGER NOT NULL PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    lineage    TEXT    NOT NULL DEFAULT '',
    master_key TEXT    NOT NULL DEFAULT '',
    revision   INTEGER NOT NULL DEFAULT 0,
    log_floor  INTEGER NOT NULL DEFAULT 0
);
INSERT INTO meta (only_row) VALUES (1);

CREATE TABLE tenants (
    id         TEXT NOT NULL PRIMARY KEY,
    created_at TEXT NOT NULL
);
INSERT INTO tenants (id, created_at) VALUES ('default', '1970-01-01T00:00:00+00:00');

-- Identity.
CREATE TABLE users (
    id                BLOB    NOT NULL PRIMARY KEY,
    tenant            TEXT    NOT NULL REFERENCES tenants (id),
    email             TEXT    NOT NULL,
    name              TEXT    NOT NULL,
    password_hash     TEXT,
    roles             TEXT    NOT NULL,
    active            BOOLEAN NOT NULL,
    tokens_not_before TEXT,
    created_at        TEXT    NOT NULL,
    updated_at        TEXT    NOT NULL,
    UNIQUE (tenant, email)
);

CREATE TABLE api_keys (
    id         TEXT NOT NULL PRIMARY KEY,
    tenant     TEXT NOT NULL REFERENCES tenants (id),
    owner      BLOB NOT NULL REFERENCES users (id),
    name       TEXT NOT NULL,
    hash       BLOB NOT NULL UNIQUE,
    limits     TEXT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    not_after  TEXT,
    revoked_at TEXT
);
CREATE INDEX api_keys_by_owner ON api_keys (owner);
CREATE INDEX api_keys_by_age ON api_keys (tenant, created_at, id);

CREATE TABLE sessions (
    id            BLOB NOT NULL PRIMARY KEY,
    tenant        TEXT NOT NULL REFERENCES tenants (id),
    user_id       BLOB NOT NULL REFERENCES users (id),
    refresh_hash  BLOB NOT NULL UNIQUE,
    previous_hash BLOB,
    created_at    TEXT NOT NULL,
    expires_at    TEXT NOT NULL,
    last_used_at  TEXT NOT NULL,
    ended_at      TEXT,
    ended_reason  TEXT
);
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_previous ON sessions (previous_hash) WHERE previous_hash IS NOT NULL;
CREATE INDEX sessions_by_end ON sessions (expires_at);

CREATE TABLE signing_keys (
    kid            TEXT NOT NULL PRIMARY KEY,
    public_key     BLOB NOT NULL,
    sealed_private BLOB NOT NULL,
    created_at     TEXT NOT NULL,
    retire_at      TEXT
);

-- The registry.
CREATE TABLE servers (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL REFERENCES tenants (id),
    name       TEXT    NOT NULL,
    spec       TEXT    NOT NULL,
    credential BLOB    NOT NULL,
    enabled    BOOLEAN NOT NULL,
    version    INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    UNIQUE (tenant, name)
);

CREATE TABLE server_tags (
    tenant    TEXT NOT NULL REFERENCES tenants (id),
    server_id BLOB NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    tag       TEXT NOT NULL,
    PRIMARY KEY (server_id, tag)
);

-- Every name that a server ever had. It outlives the server, so that a name in the audit trail means one server.
CREATE TABLE server_names (
    tenant     TEXT NOT NULL REFERENCES tenants (id),
    name       TEXT NOT NULL,
    server_id  BLOB NOT NULL,
    retired_at TEXT,
    PRIMARY KEY (tenant, name)
);

-- The revision log: one row a changed resource. Proxies learn from it what differs.
CREATE TABLE revisions (
    revision    INTEGER NOT NULL PRIMARY KEY,
    kind        TEXT    NOT NULL,
    resource_id TEXT    NOT NULL,
    removed     BOOLEAN NOT NULL,
    at          TEXT    NOT NULL
);
CREATE INDEX revisions_by_resource ON revisions (kind, resource_id, revision);

-- Proxies, which serve every tenant.
CREATE TABLE proxies (
    id                    BLOB    NOT NULL PRIMARY KEY,
    name                  TEXT    NOT NULL,
    proxy_group           TEXT    NOT NULL,
    version               TEXT    NOT NULL,
    connected             BOOLEAN NOT NULL,
    first_seen            TEXT    NOT NULL,
    last_seen             TEXT    NOT NULL,
    acknowledged_revision INTEGER NOT NULL,
    nack                  TEXT,
    health                TEXT
);
CREATE INDEX proxies_by_name ON proxies (name, id);

CREATE TABLE audit_spools (
    proxy_id       BLOB    NOT NULL,
    spool_id       BLOB    NOT NULL,
    stored_through INTEGER NOT NULL,
    lost           INTEGER NOT NULL,
    updated_at     TEXT    NOT NULL,
    PRIMARY KEY (proxy_id, spool_id)
);

-- The audit trail. `position` grows in the order of storing.
CREATE TABLE audit_events (
    position         INTEGER PRIMARY KEY AUTOINCREMENT,
    id               BLOB    NOT NULL,
    tenant           TEXT    NOT NULL,
    occurred_at      TEXT    NOT NULL,
    action           TEXT    NOT NULL,
    outcome          TEXT    NOT NULL,
    principal_id     BLOB,
    principal_name   TEXT    NOT NULL,
    api_key_id       TEXT    NOT NULL,
    client_ip        TEXT    NOT NULL,
    client_name      TEXT    NOT NULL,
    protocol_version TEXT    NOT NULL,
    server_id        BLOB,
    server_name      TEXT    NOT NULL,
    target           TEXT    NOT NULL,
    rule             TEXT    NOT NULL,
    reason           TEXT    NOT NULL,
    http_status      INTEGER NOT NULL,
    rpc_code         INTEGER NOT NULL,
    duration_us      INTEGER NOT NULL,
    upstream_us      INTEGER NOT NULL,
    request_bytes    INTEGER NOT NULL,
    response_bytes   INTEGER NOT NULL,
    request_payload  TEXT    NOT NULL,
    response_payload TEXT    NOT NULL,
    revision         INTEGER NOT NULL,
    proxy_id         BLOB,
    resource         TEXT    NOT NULL,
    detail           TEXT    NOT NULL,
    spool_id         BLOB,
    sequence         INTEGER,
    UNIQUE (id, occurred_at)
);
CREATE INDEX audit_events_by_time ON audit_events (tenant, occurred_at, id);
CREATE INDEX audit_events_by_server ON audit_events (tenant, server_name, occurred_at);
CREATE INDEX audit_events_by_principal ON audit_events (tenant, principal_id, occurred_at);
CREATE INDEX audit_events_by_resource ON audit_events (tenant, resource, occurred_at) WHERE resource <> '';
