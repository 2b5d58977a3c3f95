-- The chains of the audit trail. The twin of sqlite/0011_audit.sql.
-- An event that has a place in a chain has the digest of what is stored, the hash over everything up to it and, where it did
-- not come as it should have, a signature of the control plane for that.
ALTER TABLE audit_events ADD COLUMN digest BYTEA;
ALTER TABLE audit_events ADD COLUMN hash BYTEA;
ALTER TABLE audit_events ADD COLUMN attest BYTEA;
CREATE INDEX audit_events_by_chain ON audit_events (spool_id, sequence);
CREATE INDEX audit_events_unchained ON audit_events (tenant, occurred_at, id)
    WHERE spool_id IS NULL OR sequence IS NULL OR digest IS NULL OR hash IS NULL;

-- How far each chain has come. The control plane's own acts are the chain of the nil UUID.
ALTER TABLE audit_spools ADD COLUMN head BYTEA;
ALTER TABLE audit_spools ADD COLUMN gaps BIGINT NOT NULL DEFAULT 0;
ALTER TABLE audit_spools ADD COLUMN breaks BIGINT NOT NULL DEFAULT 0;
ALTER TABLE audit_spools ADD COLUMN checkpointed BIGINT NOT NULL DEFAULT 0;

-- Signed heads of the chains that had moved.
CREATE TABLE audit_checkpoints (
    number    BIGINT NOT NULL PRIMARY KEY,
    made_at   TIMESTAMPTZ NOT NULL,
    previous  BYTEA NOT NULL,
    unchained BIGINT NOT NULL,
    signature BYTEA NOT NULL
);
CREATE TABLE audit_heads (
    number   BIGINT NOT NULL REFERENCES audit_checkpoints (number),
    chain    UUID NOT NULL,
    sequence BIGINT NOT NULL,
    hash     BYTEA NOT NULL,
    PRIMARY KEY (number, chain)
);
CREATE INDEX audit_heads_by_chain ON audit_heads (chain, sequence);

-- What was dropped because of its age, signed, so that it is told from what was taken out.
CREATE TABLE audit_forgotten (
    chain     UUID NOT NULL,
    low       BIGINT NOT NULL,
    high      BIGINT NOT NULL,
    previous  BYTEA NOT NULL,
    hash      BYTEA NOT NULL,
    cutoff    TIMESTAMPTZ NOT NULL,
    signature BYTEA NOT NULL,
    PRIMARY KEY (chain, low)
);
