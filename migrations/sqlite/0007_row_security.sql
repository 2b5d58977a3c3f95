-- The twin of postgres/0007_row_security.sql. SQLite has no row-level security, so there is nothing to do.
SELECT 1;
