-- Who there is and what they may do: service accounts, groups, roles, grants, one-time tokens for passwords. The twin of
-- postgres/0004_access.sql.

-- Users and service accounts. `users.roles` stays for the version before, which knows roles on the whole tenant only; this
-- one writes it and reads grants.
ALTER TABLE users ADD COLUMN kind TEXT NOT NULL DEFAULT 'user';
ALTER TABLE users ADD COLUMN created_by BLOB;
CREATE INDEX users_by_kind ON users (tenant, kind, email);

-- When the key was last used, to the minute.
ALTER TABLE api_keys ADD COLUMN last_used_at TEXT;

-- Where the session was opened.
ALTER TABLE sessions ADD COLUMN client_ip TEXT NOT NULL DEFAULT '';

-- Sessions that were ended before their access tokens had: proxies refuse those by the session until `until`.
CREATE TABLE ended_sessions (
    session_id BLOB NOT NULL PRIMARY KEY,
    tenant     TEXT NOT NULL REFERENCES tenants (id),
    until      TEXT NOT NULL
);
CREATE INDEX ended_sessions_by_end ON ended_sessions (until);

-- Tokens that set a password once. Only their keyed hashes are kept.
CREATE TABLE password_tokens (
    hash       BLOB NOT NULL PRIMARY KEY,
    tenant     TEXT NOT NULL REFERENCES tenants (id),
    user_id    BLOB NOT NULL REFERENCES users (id),
    created_by BLOB,
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL
);
CREATE INDEX password_tokens_by_user ON password_tokens (user_id);
CREATE INDEX password_tokens_by_end ON password_tokens (expires_at);

CREATE TABLE principal_groups (
    id          BLOB NOT NULL PRIMARY KEY,
    tenant      TEXT NOT NULL REFERENCES tenants (id),
    name        TEXT NOT NULL,
    description TEXT NOT NULL,
    created_by  BLOB,
    created_at  TEXT NOT NULL,
    UNIQUE (tenant, name)
);

CREATE TABLE group_members (
    tenant       TEXT NOT NULL REFERENCES tenants (id),
    group_id     BLOB NOT NULL REFERENCES principal_groups (id) ON DELETE CASCADE,
    principal_id BLOB NOT NULL REFERENCES users (id),
    added_at     TEXT NOT NULL,
    PRIMARY KEY (group_id, principal_id)
);
CREATE INDEX group_members_by_principal ON group_members (principal_id);

-- Roles that tenants made; the built-in ones are in the program.
CREATE TABLE roles (
    id          BLOB    NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL REFERENCES tenants (id),
    name        TEXT    NOT NULL,
    description TEXT    NOT NULL,
    permissions TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    created_by  BLOB,
    created_at  TEXT    NOT NULL,
    updated_at  TEXT    NOT NULL,
    UNIQUE (tenant, name)
);

-- Who holds which role where. `scope` is `tenant`, `namespace`, `server` or `tools`; `scope_name` the namespace or server,
-- `pattern` the tools.
CREATE TABLE grants (
    id           BLOB NOT NULL PRIMARY KEY,
    tenant       TEXT NOT NULL REFERENCES tenants (id),
    role         TEXT NOT NULL,
    principal_id BLOB REFERENCES users (id),
    group_id     BLOB REFERENCES principal_groups (id) ON DELETE CASCADE,
    scope        TEXT NOT NULL,
    scope_name   TEXT NOT NULL,
    pattern      TEXT NOT NULL,
    created_by   BLOB,
    created_at   TEXT NOT NULL,
    CHECK ((principal_id IS NULL) <> (group_id IS NULL))
);
CREATE UNIQUE INDEX grants_of_principals ON grants (principal_id, role, scope, scope_name, pattern)
    WHERE principal_id IS NOT NULL;
CREATE UNIQUE INDEX grants_of_groups ON grants (group_id, role, scope, scope_name, pattern)
    WHERE group_id IS NOT NULL;
CREATE INDEX grants_by_age ON grants (tenant, created_at, id);
CREATE INDEX grants_by_scope ON grants (tenant, scope, scope_name);

INSERT INTO grants (id, tenant, role, principal_id, group_id, scope, scope_name, pattern, created_by, created_at)
SELECT randomblob(16), held.tenant, held.role, held.id, NULL, 'tenant', '', '', NULL, held.created_at
FROM (SELECT DISTINCT u.id, u.tenant, u.created_at, r.value AS role FROM users u, json_each(u.roles) AS r) AS held;
