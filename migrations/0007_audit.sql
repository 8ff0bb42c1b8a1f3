-- Events of the builder that the archived log is known to lack, a hole in the text as one. None: archived before this
-- was noted.
ALTER TABLE attempts ADD COLUMN log_missing bigint;
ALTER TABLE finished_jobs ADD COLUMN log_missing bigint;
CREATE OR REPLACE VIEW all_attempts AS
SELECT job_id, attempt, builder_id, assigned_at, accepted_at, ended_at, result, message, stage, timings, last_seq,
       log_object, log_bytes, log_missing
FROM attempts
UNION ALL
SELECT job_id, attempt, builder_id, assigned_at, accepted_at, NULL, NULL, NULL, stage, NULL, NULL, NULL, NULL, NULL
FROM leases
UNION ALL
SELECT job_id, attempt, builder_id, assigned_at, accepted_at, finished_at, result, message, stage, timings, last_seq,
       log_object, log_bytes, log_missing
FROM finished_jobs WHERE builder_id IS NOT NULL;
-- What an attempt made: the clean-up asks for each upload whether it became an artifact, and the audit goes by attempts.
CREATE INDEX artifacts_of_attempt ON artifacts (job_id, attempt);
