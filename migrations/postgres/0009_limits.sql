-- Limits of tenants: how much of something may be done in a time, or at once. What an operator wrote stands in `spec`.
CREATE TABLE limits (
    id         UUID        NOT NULL PRIMARY KEY,
    tenant     TEXT        NOT NULL REFERENCES tenants (id),
    name       TEXT        NOT NULL,
    spec       JSONB       NOT NULL,
    version    BIGINT      NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    UNIQUE (tenant, name)
);

-- What proxies said last of how much of a limit is used: the callers that used most of it. Written over, never added up.
CREATE TABLE limit_usage (
    tenant   TEXT        NOT NULL REFERENCES tenants (id),
    limit_id UUID        NOT NULL,
    proxy    UUID        NOT NULL,
    used     JSONB       NOT NULL,
    noted_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (tenant, limit_id, proxy)
);

DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['limits', 'limit_usage'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY of_tenant ON %I USING (%s) WITH CHECK (%s)', name, condition, condition)
            FROM (SELECT 'CASE WHEN (SELECT current_setting(''waffles.scope'', true)) = ''everywhere'' THEN true
                ELSE tenant = (SELECT current_setting(''waffles.tenant'', true)) END' AS condition) AS of_tenant;
    END LOOP;
END
$$;
