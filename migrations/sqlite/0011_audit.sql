-- The chains of the audit trail. The twin of postgres/0011_audit.sql.
-- An event that has a place in a chain has the digest of what is stored, the hash over everything up to it and, where it did
-- not come as it should have, a signature of the control plane for that.
ALTER TABLE audit_events ADD COLUMN digest BLOB;
ALTER TABLE audit_events ADD COLUMN hash BLOB;
ALTER TABLE audit_events ADD COLUMN attest BLOB;
CREATE INDEX audit_events_by_chain ON audit_events (spool_id, sequence);
CREATE INDEX audit_events_unchained ON audit_events (tenant, occurred_at, id)
    WHERE spool_id IS NULL OR sequence IS NULL OR digest IS NULL OR hash IS NULL;

-- How far each chain has come. The control plane's own acts are the chain of the nil UUID.
ALTER TABLE audit_spools ADD COLUMN head BLOB;
ALTER TABLE audit_spools ADD COLUMN gaps INTEGER NOT NULL DEFAULT 0;
ALTER TABLE audit_spools ADD COLUMN breaks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE audit_spools ADD COLUMN checkpointed INTEGER NOT NULL DEFAULT 0;

-- Signed heads of the chains that had moved.
CREATE TABLE audit_checkpoints (
    number    INTEGER NOT NULL PRIMARY KEY,
    made_at   TEXT NOT NULL,
    previous  BLOB NOT NULL,
    unchained INTEGER NOT NULL,
    signature BLOB NOT NULL
);
CREATE TABLE audit_heads (
    number   INTEGER NOT NULL REFERENCES audit_checkpoints (number),
    chain    BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    hash     BLOB NOT NULL,
    PRIMARY KEY (number, chain)
);
CREATE INDEX audit_heads_by_chain ON audit_heads (chain, sequence);

-- What was dropped because of its age, signed, so that it is told from what was taken out.
CREATE TABLE audit_forgotten (
    chain     BLOB NOT NULL,
    low       INTEGER NOT NULL,
    high      INTEGER NOT NULL,
    previous  BLOB NOT NULL,
    hash      BLOB NOT NULL,
    cutoff    TEXT NOT NULL,
    signature BLOB NOT NULL,
    PRIMARY KEY (chain, low)
);
