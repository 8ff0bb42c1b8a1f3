-- A job's row in `jobs` says what was asked for and never changes. Where it stands is in one of three tables: it waits in
-- `queue`, an attempt of it is a builder's in `leases`, or it ended in `finished_jobs`. Moving a row between narrow tables
-- and changing it in place without touching an index costs a third of changing a wide row under many indexes, leaves few
-- dead rows where rounds of assignment look, and what has ended is in nobody's way.
--
-- None of them refers to others by foreign key: each would cost a look-up per row moved. Only `store::queue` writes them.

CREATE TABLE queue (
    job_id      bigint PRIMARY KEY,
    version_id  bigint NOT NULL,
    crate_id    bigint NOT NULL,
    -- What a builder needs to know, so that handing out takes no join: none of it ever changes.
    krate       text NOT NULL,
    version     text NOT NULL,
    sha256      text NOT NULL,
    kind        text NOT NULL,
    target      text NOT NULL,
    features    text NOT NULL,
    priority    smallint NOT NULL,
    run_at      timestamptz NOT NULL,
    -- Its place among the jobs of its target and priority, dealt so that crates take turns; none until it is due.
    turn        bigint,
    -- The number of the newest attempt; 0 before the first. It fences.
    attempt     integer NOT NULL DEFAULT 0,
    -- How often an attempt ended in a way that is retried.
    tries       integer NOT NULL DEFAULT 0,
    started_at  timestamptz,
    -- Why the newest attempt ended.
    failure_class text,
    failure_message text
);
-- The same thing waits once.
CREATE UNIQUE INDEX queue_once ON queue (version_id, kind, target, features);
CREATE INDEX queue_line ON queue (target, priority, turn, job_id) WHERE turn IS NOT NULL;
CREATE INDEX queue_crate ON queue (crate_id, target, priority, turn) WHERE turn IS NOT NULL;
CREATE INDEX queue_later ON queue (run_at) WHERE turn IS NULL;

CREATE TABLE leases (
    job_id      bigint PRIMARY KEY,
    attempt     integer NOT NULL,
    builder_id  bigint NOT NULL,
    version_id  bigint NOT NULL,
    crate_id    bigint NOT NULL,
    krate       text NOT NULL,
    version     text NOT NULL,
    sha256      text NOT NULL,
    kind        text NOT NULL,
    target      text NOT NULL,
    features    text NOT NULL,
    priority    smallint NOT NULL,
    run_at      timestamptz NOT NULL,
    tries       integer NOT NULL,
    assigned_at timestamptz NOT NULL DEFAULT now(),
    -- The builder took it: it runs.
    accepted_at timestamptz,
    -- When an attempt of it was first accepted.
    started_at  timestamptz,
    lease_until timestamptz NOT NULL,
    stage       text,
    cancel_requested_at timestamptz
-- Room to change each row in its page: accepted, renewed, and its stages, none of which any index holds.
) WITH (fillfactor = 50);
CREATE INDEX leases_of_version ON leases (version_id);

CREATE TABLE finished_jobs (
    job_id      bigint PRIMARY KEY,
    state       text NOT NULL CHECK (state IN ('succeeded', 'failed', 'cancelled')),
    priority    smallint NOT NULL,
    run_at      timestamptz NOT NULL,
    attempt     integer NOT NULL,
    tries       integer NOT NULL,
    -- The rest is of its last attempt; none if it ended while it waited.
    builder_id  bigint,
    assigned_at timestamptz,
    accepted_at timestamptz,
    started_at  timestamptz,
    finished_at timestamptz NOT NULL DEFAULT now(),
    -- succeeded, cancelled, or a failure class.
    result      text,
    -- Why the job failed, where it did.
    failure_class text,
    message     text,
    stage       text,
    timings     jsonb,
    last_seq    bigint,
    log_object  text,
    log_bytes   bigint
);
CREATE INDEX finished_jobs_cancelled ON finished_jobs (job_id) WHERE state = 'cancelled';
CREATE INDEX finished_jobs_to_archive ON finished_jobs (finished_at)
    WHERE log_object IS NULL AND builder_id IS NOT NULL;

INSERT INTO queue (job_id, version_id, crate_id, krate, version, sha256, kind, target, features, priority, run_at, turn,
                   attempt, tries, started_at, failure_class, failure_message)
SELECT j.id, v.id, c.id, c.name, v.version, v.sha256, j.kind, j.target, j.features, j.priority, j.run_at,
       CASE WHEN j.run_at <= now() THEN 0 END, j.attempt, j.tries, j.started_at, j.failure_class, j.failure_message
FROM jobs j JOIN versions v ON v.id = j.version_id JOIN crates c ON c.id = v.crate_id WHERE j.state = 'queued';

INSERT INTO leases (job_id, attempt, builder_id, version_id, crate_id, krate, version, sha256, kind, target, features,
                    priority, run_at, tries, assigned_at, accepted_at, started_at, lease_until, stage, cancel_requested_at)
SELECT j.id, j.attempt, a.builder_id, v.id, c.id, c.name, v.version, v.sha256, j.kind, j.target, j.features, j.priority,
       j.run_at, j.tries, a.assigned_at, a.accepted_at, j.started_at, j.lease_until, j.stage, j.cancel_requested_at
FROM jobs j JOIN versions v ON v.id = j.version_id JOIN crates c ON c.id = v.crate_id
JOIN attempts a ON a.job_id = j.id AND a.attempt = j.attempt WHERE j.state IN ('assigned', 'running');

INSERT INTO finished_jobs (job_id, state, priority, run_at, attempt, tries, builder_id, assigned_at, accepted_at,
                           started_at, finished_at, result, failure_class, message, stage, timings, last_seq,
                           log_object, log_bytes)
SELECT j.id, j.state, j.priority, j.run_at, j.attempt, j.tries, a.builder_id, a.assigned_at, a.accepted_at,
       j.started_at, j.finished_at, a.result, CASE WHEN j.state = 'failed' THEN j.failure_class END,
       coalesce(j.failure_message, a.message), a.stage, a.timings, a.last_seq, a.log_object, a.log_bytes
FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.attempt = j.attempt AND j.builder_id IS NOT NULL
WHERE j.finished_at IS NOT NULL;

ALTER TABLE uploads DROP CONSTRAINT uploads_job_id_attempt_fkey;
ALTER TABLE artifacts DROP CONSTRAINT artifacts_job_id_attempt_fkey;

-- Attempts that another one followed. The newest is the job's own, in `leases` or `finished_jobs`.
DELETE FROM attempts a USING jobs j WHERE j.id = a.job_id AND j.attempt = a.attempt AND j.builder_id IS NOT NULL;
ALTER TABLE attempts DROP CONSTRAINT attempts_job_id_fkey, DROP CONSTRAINT attempts_builder_id_fkey;

ALTER TABLE jobs
    DROP COLUMN priority, DROP COLUMN state, DROP COLUMN run_at, DROP COLUMN attempt, DROP COLUMN tries,
    DROP COLUMN builder_id, DROP COLUMN lease_until, DROP COLUMN stage, DROP COLUMN cancel_requested_at,
    DROP COLUMN failure_class, DROP COLUMN failure_message, DROP COLUMN started_at, DROP COLUMN finished_at,
    DROP CONSTRAINT jobs_version_id_fkey, DROP CONSTRAINT jobs_parent_id_fkey;

-- Jobs and attempts as people read them.
CREATE VIEW all_jobs AS
SELECT j.id, j.version_id, j.kind, j.target, j.features, j.parent_id, j.created_at,
       CASE WHEN q.job_id IS NOT NULL THEN 'queued'
            WHEN l.accepted_at IS NOT NULL THEN 'running'
            WHEN l.job_id IS NOT NULL THEN 'assigned'
            ELSE f.state END AS state,
       coalesce(q.priority, l.priority, f.priority) AS priority,
       coalesce(q.run_at, l.run_at, f.run_at) AS run_at,
       coalesce(q.attempt, l.attempt, f.attempt) AS attempt,
       coalesce(q.tries, l.tries, f.tries) AS tries,
       coalesce(l.builder_id, f.builder_id) AS builder_id,
       l.lease_until, coalesce(l.stage, f.stage) AS stage, l.cancel_requested_at,
       coalesce(q.failure_class, f.failure_class) AS failure_class,
       CASE WHEN q.job_id IS NOT NULL THEN q.failure_message WHEN f.failure_class IS NOT NULL THEN f.message END
           AS failure_message,
       coalesce(q.started_at, l.started_at, f.started_at) AS started_at, f.finished_at
FROM jobs j
LEFT JOIN queue q ON q.job_id = j.id
LEFT JOIN leases l ON l.job_id = j.id
LEFT JOIN finished_jobs f ON f.job_id = j.id;

CREATE VIEW all_attempts AS
SELECT job_id, attempt, builder_id, assigned_at, accepted_at, ended_at, result, message, stage, timings, last_seq,
       log_object, log_bytes
FROM attempts
UNION ALL
SELECT job_id, attempt, builder_id, assigned_at, accepted_at, NULL, NULL, NULL, stage, NULL, NULL, NULL, NULL
FROM leases
UNION ALL
SELECT job_id, attempt, builder_id, assigned_at, accepted_at, finished_at, result, message, stage, timings, last_seq,
       log_object, log_bytes
FROM finished_jobs WHERE builder_id IS NOT NULL;

-- An entry is what one transaction has to say, in order.
ALTER TABLE outbox ADD COLUMN subjects text[], ADD COLUMN payloads bytea[];
UPDATE outbox SET subjects = ARRAY[subject], payloads = ARRAY[payload];
ALTER TABLE outbox DROP COLUMN subject, DROP COLUMN payload,
    ALTER COLUMN subjects SET NOT NULL, ALTER COLUMN payloads SET NOT NULL;

-- Where in its line a job of a crate comes: after the crate's own, and not before what is being served. A crate that has
-- waited for nothing starts where the line stands, so a long queue of one crate delays another's job by one turn.
CREATE FUNCTION next_turn (of_crate bigint, for_target text, at_priority smallint) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT greatest(
        (SELECT turn FROM queue WHERE target = for_target AND priority = at_priority AND turn IS NOT NULL
         ORDER BY turn LIMIT 1),
        (SELECT turn + 1 FROM queue
         WHERE crate_id = of_crate AND target = for_target AND priority = at_priority AND turn IS NOT NULL
         ORDER BY turn DESC LIMIT 1),
        0)
$$;
