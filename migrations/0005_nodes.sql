-- The runs of API nodes that hold builders' connections. Each says that it lives in its one row, for all of its sessions
-- at once, so that a builder that waits costs the database nothing.
CREATE TABLE nodes (
    name        text NOT NULL,
    -- Unix milliseconds of its start: a node that restarts is another run.
    epoch       bigint NOT NULL,
    seen_at     timestamptz NOT NULL DEFAULT now(),
    -- Grows with each change that somebody else makes to one of its sessions: then the node looks at them all.
    changes     bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (name, epoch)
);

-- A session lives as long as the run that holds it. A node of an earlier version knows of no run, and marks each of its
-- sessions in `seen_at`.
ALTER TABLE builder_sessions ADD COLUMN epoch bigint;
ALTER TABLE builder_sessions ADD FOREIGN KEY (node, epoch) REFERENCES nodes;

-- Who has asked first is served first, without a look at all the others.
CREATE INDEX builder_sessions_in_turn ON builder_sessions (requested_at, builder_id) WHERE slots > 0;
DROP INDEX builder_sessions_waiting;
