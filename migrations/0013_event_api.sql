-- The event API: who uses it, what they insert, what of it is still to be published, and what was published last.

CREATE TABLE users (
    id            uuid PRIMARY KEY,
    username      text NOT NULL UNIQUE,
    -- bcrypt
    password_hash text NOT NULL,
    collection_id uuid NOT NULL,
    -- How many events they have inserted: there is a bound.
    events        bigint NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- Nothing of an event changes but that it is cancelled. It is published if it is neither that nor due.
CREATE TABLE events (
    id            uuid PRIMARY KEY,
    -- The order of insertion.
    seq           bigint GENERATED ALWAYS AS IDENTITY,
    user_id       uuid NOT NULL,
    collection_id uuid NOT NULL,
    event         text NOT NULL,
    -- Unix seconds.
    timestamp     bigint NOT NULL,
    -- JSON as it was written: jsonb has no room for some of it.
    data          text NOT NULL,
    cancelled     boolean NOT NULL DEFAULT false
);
CREATE INDEX events_of_collection ON events (collection_id, timestamp, seq);
CREATE INDEX events_of_user ON events (user_id, timestamp, seq);

-- What is still to be published, in the order in which it will be.
CREATE TABLE due_events (
    timestamp bigint NOT NULL,
    seq       bigint NOT NULL,
    event_id  uuid NOT NULL,
    PRIMARY KEY (timestamp, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- What cannot be cancelled any more and goes to the bus, in this order. It is known to be there once it has left this table.
CREATE TABLE firing_events (
    place    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id uuid NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- The event of each name that was published last, and its place in the stream. A name may be longer than an index takes.
CREATE TABLE latest_events (
    name_hash bytea PRIMARY KEY,
    sequence  bigint NOT NULL,
    event_id  uuid NOT NULL
);
CREATE INDEX latest_events_in_order ON latest_events (sequence);

-- One row. Whoever publishes begins a term: what others still want to write is void then.
CREATE TABLE timeline (
    one           boolean PRIMARY KEY DEFAULT true CHECK (one),
    term          bigint NOT NULL DEFAULT 0,
    -- Up to this message of the stream everything above is noted.
    last_sequence bigint NOT NULL DEFAULT 0
);
INSERT INTO timeline DEFAULT VALUES;
