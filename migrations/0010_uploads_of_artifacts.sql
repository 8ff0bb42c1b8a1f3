-- What is published leaves `uploads` in the transaction that publishes it, so that the clean-up reads only what is left.
-- These were published before. A process of before leaves its own: nothing is wrong with them, they are only read in vain.
DELETE FROM uploads u USING artifacts r
WHERE r.job_id = u.job_id AND r.attempt = u.attempt AND r.name = u.name;
