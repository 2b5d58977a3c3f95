-- The first schema. The twin of sqlite/0001_init.sql: the same tables and columns, in the types of Postgres.

-- One row: what this database is.
CREATE TABLE meta (
    only_row   SMALLINT    NOT NULL PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    lineage    TEXT        NOT NULL DEFAULT '',
    master_key TEXT        NOT NULL DEFAULT '',
    revision   BIGINT      NOT NULL DEFAULT 0,
    log_floor  BIGINT      NOT NULL DEFAULT 0
);
INSERT INTO meta (only_row) VALUES (1);

CREATE TABLE tenants (
    id         TEXT        NOT NULL PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL
);
INSERT INTO tenants (id, created_at) VALUES ('default', '1970-01-01T00:00:00+00:00');

-- Identity.
CREATE TABLE users (
    id                UUID        NOT NULL PRIMARY KEY,
    tenant            TEXT        NOT NULL REFERENCES tenants (id),
    email             TEXT        NOT NULL,
    name              TEXT        NOT NULL,
    password_hash     TEXT,
    roles             JSONB       NOT NULL,
    active            BOOLEAN     NOT NULL,
    tokens_not_before TIMESTAMPTZ,
    created_at        TIMESTAMPTZ NOT NULL,
    updated_at        TIMESTAMPTZ NOT NULL,
    UNIQUE (tenant, email)
);

CREATE TABLE api_keys (
    id         TEXT        NOT NULL PRIMARY KEY,
    tenant     TEXT        NOT NULL REFERENCES tenants (id),
    owner      UUID        NOT NULL REFERENCES users (id),
    name       TEXT        NOT NULL,
    hash       BYTEA       NOT NULL UNIQUE,
    limits     JSONB       NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ,
    not_after  TIMESTAMPTZ,
    revoked_at TIMESTAMPTZ
);
CREATE INDEX api_keys_by_owner ON api_keys (owner);
CREATE INDEX api_keys_by_age ON api_keys (tenant, created_at, id);

CREATE TABLE sessions (
    id            UUID        NOT NULL PRIMARY KEY,
    tenant        TEXT        NOT NULL REFERENCES tenants (id),
    user_id       UUID        NOT NULL REFERENCES users (id),
    refresh_hash  BYTEA       NOT NULL UNIQUE,
    previous_hash BYTEA,
    created_at    TIMESTAMPTZ NOT NULL,
    expires_at    TIMESTAMPTZ NOT NULL,
    last_used_at  TIMESTAMPTZ NOT NULL,
    ended_at      TIMESTAMPTZ,
    ended_reason  TEXT
);
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_previous ON sessions (previous_hash) WHERE previous_hash IS NOT NULL;
CREATE INDEX sessions_by_end ON sessions (expires_at);

CREATE TABLE signing_keys (
    kid            TEXT        NOT NULL PRIMARY KEY,
    public_key     BYTEA       NOT NULL,
    sealed_private BYTEA       NOT NULL,
    created_at     TIMESTAMPTZ NOT NULL,
    retire_at      TIMESTAMPTZ
);

-- The registry.
CREATE TABLE servers (
    id         UUID        NOT NULL PRIMARY KEY,
    tenant     TEXT        NOT NULL REFERENCES tenants (id),
    name       TEXT        NOT NULL,
    spec       JSONB       NOT NULL,
    credential BYTEA       NOT NULL,
    enabled    BOOLEAN     NOT NULL,
    version    BIGINT      NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    UNIQUE (tenant, name)
);

CREATE TABLE server_tags (
    tenant    TEXT        NOT NULL REFERENCES tenants (id),
    server_id UUID        NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    tag       TEXT        NOT NULL,
    PRIMARY KEY (server_id, tag)
);

-- Every name that a server ever had. It outlives the server, so that a name in the audit trail means one server.
CREATE TABLE server_names (
    tenant     TEXT        NOT NULL REFERENCES tenants (id),
    name       TEXT        NOT NULL,
    server_id  UUID        NOT NULL,
    retired_at TIMESTAMPTZ,
    PRIMARY KEY (tenant, name)
);

-- The revision log: one row a changed resource. Proxies learn from it what differs.
CREATE TABLE revisions (
    revision    BIGINT      NOT NULL PRIMARY KEY,
    kind        TEXT        NOT NULL,
    resource_id TEXT        NOT NULL,
    removed     BOOLEAN     NOT NULL,
    at          TIMESTAMPTZ NOT NULL
);
CREATE INDEX revisions_by_resource ON revisions (kind, resource_id, revision);

-- Proxies, which serve every tenant.
CREATE TABLE proxies (
    id                    UUID        NOT NULL PRIMARY KEY,
    name                  TEXT        NOT NULL,
    proxy_group           TEXT        NOT NULL,
    version               TEXT        NOT NULL,
    connected             BOOLEAN     NOT NULL,
    first_seen            TIMESTAMPTZ NOT NULL,
    last_seen             TIMESTAMPTZ NOT NULL,
    acknowledged_revision BIGINT      NOT NULL,
    nack                  JSONB,
    health                JSONB
);
CREATE INDEX proxies_by_name ON proxies (name, id);

CREATE TABLE audit_spools (
    proxy_id       UUID        NOT NULL,
    spool_id       UUID        NOT NULL,
    stored_through BIGINT      NOT NULL,
    lost           BIGINT      NOT NULL,
    updated_at     TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (proxy_id, spool_id)
);

-- The audit trail. `position` grows in the order of storing.
CREATE TABLE audit_events (
    position         BIGSERIAL   NOT NULL,
    id               UUID        NOT NULL,
    tenant           TEXT        NOT NULL,
    occurred_at      TIMESTAMPTZ NOT NULL,
    action           TEXT        NOT NULL,
    outcome          TEXT        NOT NULL,
    principal_id     UUID,
    principal_name   TEXT        NOT NULL,
    api_key_id       TEXT        NOT NULL,
    client_ip        TEXT        NOT NULL,
    client_name      TEXT        NOT NULL,
    protocol_version TEXT        NOT NULL,
    server_id        UUID,
    server_name      TEXT        NOT NULL,
    target           TEXT        NOT NULL,
    rule             TEXT        NOT NULL,
    reason           TEXT        NOT NULL,
    http_status      INTEGER     NOT NULL,
    rpc_code         BIGINT      NOT NULL,
    duration_us      BIGINT      NOT NULL,
    upstream_us      BIGINT      NOT NULL,
    request_bytes    BIGINT      NOT NULL,
    response_bytes   BIGINT      NOT NULL,
    request_payload  TEXT        NOT NULL,
    response_payload TEXT        NOT NULL,
    revision         BIGINT      NOT NULL,
    proxy_id         UUID,
    resource         TEXT        NOT NULL,
    detail           TEXT        NOT NULL,
    spool_id         UUID,
    sequence         BIGINT,
    PRIMARY KEY (id, occurred_at)
) PARTITION BY RANGE (occurred_at);
-- Months are made ahead by the control plane; what falls into none of them is kept here.
CREATE TABLE audit_events_default PARTITION OF audit_events DEFAULT;
CREATE INDEX audit_events_by_position ON audit_events (position);
CREATE INDEX audit_events_by_time ON audit_events (tenant, occurred_at, id);
CREATE INDEX audit_events_by_server ON audit_events (tenant, server_name, occurred_at);
CREATE INDEX audit_events_by_principal ON audit_events (tenant, principal_id, occurred_at);
CREATE INDEX audit_events_by_resource ON audit_events (tenant, resource, occurred_at) WHERE resource <> '';
