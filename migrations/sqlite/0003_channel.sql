-- The channel between the planes: who certifies proxies, what they join with, and who is shut out. The twin of
-- postgres/0003_channel.sql. Proxies serve every tenant, so nothing here is a tenant's.

-- Part of every proxy's identity; given once.
ALTER TABLE meta ADD COLUMN trust_domain TEXT NOT NULL DEFAULT '';

-- The newest issues; the others are believed until their last certificate has ended.
CREATE TABLE authorities (
    id          BLOB NOT NULL PRIMARY KEY,
    certificate BLOB NOT NULL,
    bridge      BLOB,
    sealed_key  BLOB NOT NULL,
    created_at  TEXT NOT NULL
);

CREATE TABLE join_tokens (
    id          BLOB NOT NULL PRIMARY KEY,
    hash        BLOB NOT NULL UNIQUE,
    proxy_group TEXT NOT NULL,
    created_at  TEXT NOT NULL,
    expires_at  TEXT NOT NULL,
    used_at     TEXT,
    used_by     BLOB
);

CREATE TABLE proxy_certificates (
    serial      BLOB NOT NULL PRIMARY KEY,
    proxy_id    BLOB NOT NULL,
    proxy_group TEXT NOT NULL,
    authority   BLOB,
    key_hash    BLOB NOT NULL,
    issued_at   TEXT NOT NULL,
    expires_at  TEXT NOT NULL
);
CREATE INDEX proxy_certificates_by_proxy ON proxy_certificates (proxy_id, expires_at);

-- Certificates issued before the denial was lifted stay refused.
CREATE TABLE proxy_denials (
    proxy_id  BLOB NOT NULL PRIMARY KEY,
    denied_at TEXT NOT NULL,
    lifted_at TEXT
);
