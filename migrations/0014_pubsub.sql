-- Publish and subscribe over CBOR: sessions that outlive their connections, and what they subscribe to. What is published
-- is on the bus.

CREATE TABLE pubsub_sessions (
    id        uuid PRIMARY KEY,
    -- Whose it is, if somebody came with a token; nobody else may have it then.
    owner     text,
    -- Counts connections: what an older one still wants to write is void.
    epoch     bigint NOT NULL DEFAULT 1,
    -- The node that has its connection.
    node      text,
    -- Up to this message of the stream the client has everything.
    confirmed bigint NOT NULL DEFAULT 0,
    seen_at   timestamptz NOT NULL DEFAULT now()
);
-- Who was not seen for longest. Those with a connection are seen again and again.
CREATE INDEX pubsub_sessions_by_age ON pubsub_sessions (seen_at);

-- It is there as long as somebody subscribes to it.
CREATE TABLE pubsub_subscriptions (
    id uuid PRIMARY KEY
);

CREATE TABLE pubsub_members (
    session_id      uuid NOT NULL REFERENCES pubsub_sessions ON DELETE CASCADE,
    subscription_id uuid NOT NULL REFERENCES pubsub_subscriptions,
    -- Empty: it gets everything. Else each thing goes to one of the group.
    "group"         text NOT NULL,
    -- It gets what comes after this message of the stream.
    since           bigint NOT NULL,
    PRIMARY KEY (session_id, subscription_id, "group")
);
-- A group that has members. Made anew it has another id: what its name was before nothing is left of.
CREATE TABLE pubsub_groups (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id uuid NOT NULL,
    "group"         text NOT NULL,
    since           bigint NOT NULL,
    UNIQUE (subscription_id, "group")
);
CREATE INDEX pubsub_members_of_subscription ON pubsub_members (subscription_id, "group");
