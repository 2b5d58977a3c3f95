-- Whether API keys are too many to be sent to every proxy. The twin of sqlite/0012_keys_on_demand.sql.
ALTER TABLE meta ADD COLUMN keys_on_demand BOOLEAN NOT NULL DEFAULT FALSE;
