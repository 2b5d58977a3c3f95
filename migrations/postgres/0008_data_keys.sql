-- The keys that seal what is secret here. They are sealed themselves, under the master key, which is kept elsewhere.
-- A key is `next` until every replica and proxy knows it, then `sealing`, then `retired` until nothing needs it.
CREATE TABLE data_keys (
    purpose    TEXT        NOT NULL,
    id         BIGINT      NOT NULL CHECK (id BETWEEN 1 AND 255),
    sealed     BYTEA       NOT NULL,
    stage      TEXT        NOT NULL CHECK (stage IN ('next', 'sealing', 'retired')),
    created_at TIMESTAMPTZ NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (purpose, id)
);

-- What proxies were last told of where the control plane is.
ALTER TABLE meta ADD COLUMN closed TEXT NOT NULL DEFAULT '';
