-- When the builder last said how many jobs it waits for. An assignment that got lost after that left the service with
-- one slot less than the builder has, for ever: the slot is given back when nobody accepts the job.
ALTER TABLE builder_sessions ADD COLUMN requested_at timestamptz NOT NULL DEFAULT now();
