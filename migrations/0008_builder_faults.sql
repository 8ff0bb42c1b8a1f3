-- Builders whose attempts end for reasons that are not the crate's, one after the other: they get jobs again after a
-- while, which doubles each time. A row goes with the first attempt that ends well.
CREATE TABLE builder_faults (
    builder_id   bigint PRIMARY KEY REFERENCES builders,
    faults       integer NOT NULL,
    last_at      timestamptz NOT NULL,
    paused_until timestamptz
);
