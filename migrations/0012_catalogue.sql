-- Which versions may be downloaded, as one number that changes whenever a yank or a block does: nodes that keep what they
-- read of artifacts ask for it twice a second. Operators block by SQL, so a trigger counts and no program has to.
CREATE TABLE catalogue (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    generation  bigint NOT NULL DEFAULT 0,
    -- The transaction that counted last: one that changes many versions counts once.
    changed_by  xid8
);
INSERT INTO catalogue DEFAULT VALUES;

CREATE FUNCTION count_catalogue_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE catalogue SET generation = generation + 1, changed_by = pg_current_xact_id()
    WHERE changed_by IS DISTINCT FROM pg_current_xact_id();
    RETURN NULL;
END
$$;

-- Deferred to the commit: the row is locked last and for a moment, so that transactions which change different versions
-- neither wait for each other's work nor deadlock.
CREATE CONSTRAINT TRIGGER count_catalogue_change AFTER UPDATE OF yanked, blocked ON versions
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (OLD.yanked IS DISTINCT FROM NEW.yanked OR OLD.blocked IS DISTINCT FROM NEW.blocked)
EXECUTE FUNCTION count_catalogue_change();
