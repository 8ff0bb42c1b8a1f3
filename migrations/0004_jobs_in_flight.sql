-- Jobs that were assigned to the builder and that its newest request may not know of: `slots` leaves them out. Without
-- this, a request that crossed a job on the way offered the job's slot a second time.
ALTER TABLE builder_sessions ADD COLUMN in_flight bigint[] NOT NULL DEFAULT '{}';
