-- The keys that seal what is secret here. The twin of postgres/0008_data_keys.sql.
CREATE TABLE data_keys (
    purpose    TEXT    NOT NULL,
    id         INTEGER NOT NULL CHECK (id BETWEEN 1 AND 255),
    sealed     BLOB    NOT NULL,
    stage      TEXT    NOT NULL CHECK (stage IN ('next', 'sealing', 'retired')),
    created_at TEXT    NOT NULL,
    changed_at TEXT    NOT NULL,
    PRIMARY KEY (purpose, id)
);

-- What proxies were last told of where the control plane is.
ALTER TABLE meta ADD COLUMN closed TEXT NOT NULL DEFAULT '';
