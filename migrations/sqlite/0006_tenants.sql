-- What a tenant may have and whether it is suspended. The twin of postgres/0006_tenants.sql, which adds row-level security;
-- SQLite has none, and every statement names the tenant.

ALTER TABLE tenants ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE tenants ADD COLUMN suspended_at TEXT;
-- None is as many as one likes.
ALTER TABLE tenants ADD COLUMN max_servers INTEGER;
ALTER TABLE tenants ADD COLUMN max_principals INTEGER;
ALTER TABLE tenants ADD COLUMN max_api_keys INTEGER;
