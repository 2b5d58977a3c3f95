-- The channel between the planes: who certifies proxies, what they join with, and who is shut out. The twin of
-- sqlite/0003_channel.sql. Proxies serve every tenant, so nothing here is a tenant's.

-- Part of every proxy's identity; given once.
ALTER TABLE meta ADD COLUMN trust_domain TEXT NOT NULL DEFAULT '';

-- The newest issues; the others are believed until their last certificate has ended.
CREATE TABLE authorities (
    id          UUID NOT NULL PRIMARY KEY,
    certificate BYTEA NOT NULL,
    bridge      BYTEA,
    sealed_key  BYTEA NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL
);

CREATE TABLE join_tokens (
    id          UUID NOT NULL PRIMARY KEY,
    hash        BYTEA NOT NULL UNIQUE,
    proxy_group TEXT NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    expires_at  TIMESTAMPTZ NOT NULL,
    used_at     TIMESTAMPTZ,
    used_by     UUID
);

CREATE TABLE proxy_certificates (
    serial      UUID NOT NULL PRIMARY KEY,
    proxy_id    UUID NOT NULL,
    proxy_group TEXT NOT NULL,
    authority   UUID,
    key_hash    BYTEA NOT NULL,
    issued_at   TIMESTAMPTZ NOT NULL,
    expires_at  TIMESTAMPTZ NOT NULL
);
CREATE INDEX proxy_certificates_by_proxy ON proxy_certificates (proxy_id, expires_at);

-- Certificates issued before the denial was lifted stay refused.
CREATE TABLE proxy_denials (
    proxy_id  UUID NOT NULL PRIMARY KEY,
    denied_at TIMESTAMPTZ NOT NULL,
    lifted_at TIMESTAMPTZ
);
