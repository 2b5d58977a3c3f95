-- Policy: the rules of a tenant, every version that they were ever in, and what tools servers were seen to have. The twin
-- of postgres/0005_policy.sql.

-- The rules in force. `version` is the version of the tenant's policy in which a rule changed last.
CREATE TABLE policy_rules (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL REFERENCES tenants (id),
    name       TEXT    NOT NULL,
    spec       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    UNIQUE (tenant, name)
);

-- One row a save. `revision` is the one at which proxies were told; `restored` the version that a rollback went back to.
CREATE TABLE policy_versions (
    tenant      TEXT    NOT NULL REFERENCES tenants (id),
    version     INTEGER NOT NULL,
    revision    INTEGER NOT NULL,
    author      BLOB,
    author_name TEXT    NOT NULL,
    comment     TEXT    NOT NULL,
    restored    INTEGER,
    created_at  TEXT    NOT NULL,
    PRIMARY KEY (tenant, version)
);
CREATE INDEX policy_versions_by_revision ON policy_versions (tenant, revision);

-- What a version changed: the rule as it became, or nothing where it was removed. A version is the latest of these of each
-- rule, up to it.
CREATE TABLE policy_changes (
    tenant  TEXT    NOT NULL REFERENCES tenants (id),
    version INTEGER NOT NULL,
    rule_id BLOB    NOT NULL,
    name    TEXT    NOT NULL,
    spec    TEXT,
    PRIMARY KEY (tenant, rule_id, version)
);
CREATE INDEX policy_changes_by_version ON policy_changes (tenant, version);

-- The tools that proxies saw in lists of servers, with the JSON Schema of their arguments as the server wrote it.
CREATE TABLE server_tools (
    tenant       TEXT NOT NULL REFERENCES tenants (id),
    server_id    BLOB NOT NULL REFERENCES servers (id) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    input_schema TEXT NOT NULL,
    seen_at      TEXT NOT NULL,
    PRIMARY KEY (server_id, name)
);
CREATE INDEX server_tools_by_tenant ON server_tools (tenant);
