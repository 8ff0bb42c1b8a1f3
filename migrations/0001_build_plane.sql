-- The build plane. Postgres is the truth about jobs; everything the bus carries can be repaired from here.

CREATE TABLE crates (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    -- Lower case, '-' as '_': registries treat such names as one.
    canonical   text NOT NULL UNIQUE,
    -- Validators of the index entry, as the registry sent them.
    etag        text,
    last_modified text,
    checked_at  timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE versions (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    crate_id    bigint NOT NULL REFERENCES crates,
    version     text NOT NULL,
    -- Of the .crate file.
    sha256      text NOT NULL CHECK (length(sha256) = 64),
    yanked      boolean NOT NULL DEFAULT false,
    -- Taken down by an operator: its artifacts answer 410.
    blocked     boolean NOT NULL DEFAULT false,
    seen_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (crate_id, version)
);

CREATE TABLE targets (
    name        text PRIMARY KEY,
    enabled     boolean NOT NULL DEFAULT true,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE builders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    enabled     boolean NOT NULL DEFAULT true,
    drain       boolean NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz
);

-- Keys are never deleted: manifests they signed must stay verifiable.
CREATE TABLE builder_keys (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    builder_id  bigint NOT NULL REFERENCES builders,
    fingerprint text NOT NULL UNIQUE,
    -- One line: type, base64.
    public_key  text NOT NULL,
    enabled     boolean NOT NULL DEFAULT true,
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- The targets an operator lets a builder build for.
CREATE TABLE builder_targets (
    builder_id  bigint NOT NULL REFERENCES builders,
    target      text NOT NULL REFERENCES targets,
    PRIMARY KEY (builder_id, target)
);

-- The one connection of each builder that is logged in, and how many jobs it waits for.
CREATE TABLE builder_sessions (
    builder_id  bigint PRIMARY KEY REFERENCES builders,
    connection  text NOT NULL UNIQUE,
    node        text NOT NULL,
    -- What the builder offered, less what the operator does not allow.
    targets     text[] NOT NULL,
    slots       integer NOT NULL DEFAULT 0 CHECK (slots >= 0),
    -- The number of the newest request; an older one that comes late changes nothing.
    serial      bigint NOT NULL DEFAULT 0,
    connected_at timestamptz NOT NULL DEFAULT now(),
    seen_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX builder_sessions_waiting ON builder_sessions (builder_id) WHERE slots > 0;

CREATE TABLE jobs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version_id  bigint NOT NULL REFERENCES versions,
    kind        text NOT NULL CHECK (kind IN ('metadata', 'tarball', 'debian', 'rustdoc', 'coverage')),
    target      text NOT NULL,
    features    text NOT NULL DEFAULT 'default',
    priority    smallint NOT NULL,
    state       text NOT NULL DEFAULT 'queued'
                CHECK (state IN ('queued', 'assigned', 'running', 'succeeded', 'failed', 'cancelled')),
    run_at      timestamptz NOT NULL DEFAULT now(),
    -- The number of the newest attempt; 0 before the first. It fences.
    attempt     integer NOT NULL DEFAULT 0,
    -- How often an attempt ended in a way that is retried.
    tries       integer NOT NULL DEFAULT 0,
    builder_id  bigint REFERENCES builders,
    lease_until timestamptz,
    stage       text,
    cancel_requested_at timestamptz,
    failure_class text,
    failure_message text,
    -- The job this one follows from or repeats.
    parent_id   bigint REFERENCES jobs,
    created_at  timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz,
    finished_at timestamptz,
    CHECK ((state IN ('assigned', 'running')) = (lease_until IS NOT NULL)),
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
);
-- The same thing is not built twice at once.
CREATE UNIQUE INDEX jobs_active ON jobs (version_id, kind, target, features)
    WHERE state IN ('queued', 'assigned', 'running');
CREATE INDEX jobs_queue ON jobs (priority, run_at, id) WHERE state = 'queued';
CREATE INDEX jobs_leases ON jobs (lease_until) WHERE state IN ('assigned', 'running');
CREATE INDEX jobs_of_version ON jobs (version_id, id);
CREATE INDEX jobs_of_state ON jobs (state, id);

CREATE TABLE attempts (
    job_id      bigint NOT NULL REFERENCES jobs,
    attempt     integer NOT NULL,
    builder_id  bigint NOT NULL REFERENCES builders,
    assigned_at timestamptz NOT NULL DEFAULT now(),
    accepted_at timestamptz,
    ended_at    timestamptz,
    -- succeeded, cancelled, or a failure class.
    result      text,
    message     text,
    stage       text,
    timings     jsonb,
    -- The number of the builder's last event, where it said so.
    last_seq    bigint,
    -- Where the log went when the attempt ended; until then it is on the bus.
    log_object  text,
    log_bytes   bigint,
    PRIMARY KEY (job_id, attempt)
);
CREATE INDEX attempts_to_archive ON attempts (ended_at) WHERE ended_at IS NOT NULL AND log_object IS NULL;

-- What an attempt has put into the object store, verified; not visible yet.
CREATE TABLE uploads (
    job_id      bigint NOT NULL,
    attempt     integer NOT NULL,
    name        text NOT NULL,
    size        bigint NOT NULL,
    sha256      text NOT NULL CHECK (length(sha256) = 64),
    object      text NOT NULL,
    stored_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, attempt, name),
    FOREIGN KEY (job_id, attempt) REFERENCES attempts
);

CREATE TABLE artifacts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version_id  bigint NOT NULL REFERENCES versions,
    kind        text NOT NULL,
    target      text NOT NULL,
    features    text NOT NULL,
    job_id      bigint NOT NULL,
    attempt     integer NOT NULL,
    -- Its place in the manifest; the first is what the download route serves.
    position    smallint NOT NULL,
    name        text NOT NULL,
    size        bigint NOT NULL,
    sha256      text NOT NULL CHECK (length(sha256) = 64),
    object      text NOT NULL,
    -- The exact bytes that were signed.
    manifest    text NOT NULL,
    signature   text NOT NULL,
    builder_key_id bigint NOT NULL REFERENCES builder_keys,
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- A newer good build took its place.
    replaced_at timestamptz,
    FOREIGN KEY (job_id, attempt) REFERENCES attempts
);
CREATE UNIQUE INDEX artifacts_current ON artifacts (version_id, target, kind, features, position)
    WHERE replaced_at IS NULL;

CREATE TABLE downloads_daily (
    artifact_id bigint NOT NULL REFERENCES artifacts,
    day         date NOT NULL,
    client      text NOT NULL,
    count       bigint NOT NULL,
    PRIMARY KEY (artifact_id, day, client)
);

-- The newest batch of each run of each publisher that is counted: it commits together with the counts.
CREATE TABLE download_batches (
    node        text NOT NULL,
    epoch       bigint NOT NULL,
    batch       bigint NOT NULL,
    seen_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (node, epoch)
);

-- Bus messages that belong to a transaction: written with it, published after it, in order.
CREATE TABLE outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject     text NOT NULL,
    payload     bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
