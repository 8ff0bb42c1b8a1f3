-- Attempts, as `job.attempt`, that were assigned to the builder and that its newest request may not know of: `slots` leaves
-- them out. Without this, a request that crossed a job on the way offered the job's slot a second time. A request for
-- fewer slots than there are jobs in flight makes `slots` negative, until they are answered.
ALTER TABLE builder_sessions ADD COLUMN in_flight text[] NOT NULL DEFAULT '{}';
ALTER TABLE builder_sessions DROP CONSTRAINT builder_sessions_slots_check;
