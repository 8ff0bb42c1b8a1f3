-- Counts of downloads by months, and their sums by crate, which commit together with them.
--
-- The name of before stays, as a view for whoever reads. Counters of before cannot write it: what they take they leave on
-- the bus for those that come with this schema.

ALTER TABLE downloads_daily RENAME TO downloads_daily_before;

-- The finest grain: the file, the day (UTC), and what kind of client asked.
CREATE TABLE download_counts (
    artifact_id bigint NOT NULL,
    day         date NOT NULL,
    client      text NOT NULL,
    count       bigint NOT NULL,
    PRIMARY KEY (artifact_id, day, client)
) PARTITION BY RANGE (day);

-- The same downloads once for each way in which people look at those of a crate: axis is version, target, kind or client.
CREATE TABLE download_sums (
    crate_id    bigint NOT NULL,
    axis        text NOT NULL,
    day         date NOT NULL,
    key         text NOT NULL,
    count       bigint NOT NULL,
    PRIMARY KEY (crate_id, axis, day, key)
) PARTITION BY RANGE (day);

-- And once for each crate and day.
CREATE TABLE download_days (
    crate_id    bigint NOT NULL,
    day         date NOT NULL,
    count       bigint NOT NULL,
    PRIMARY KEY (crate_id, day)
) PARTITION BY RANGE (day);

-- The months that there are partitions for, and which of them have been written anew, without gaps and in order.
CREATE TABLE download_months (
    month        date PRIMARY KEY,
    compacted_at timestamptz
);

-- Days that are in the object store as files, with what was counted of them then: a day that got more since is made anew.
CREATE TABLE download_dumps (
    day         date PRIMARY KEY,
    count       bigint,
    dumped_at   timestamptz,
    -- A dispatcher is at it since then.
    claimed_at  timestamptz
);

-- Requests of clients that ask twice for what they install: every second one is no download. Rows live for minutes.
CREATE TABLE download_installs (
    who         bigint NOT NULL,
    artifact_id bigint NOT NULL,
    requests    bigint NOT NULL,
    -- Unix seconds of the newest, by the clock of the node that saw it.
    at_s        bigint NOT NULL,
    seen_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (who, artifact_id)
);

-- Makes the partitions of the month that a day is in. Half of each page stays free: a row that is counted up stays on its
-- page, and the index hears nothing of it.
CREATE FUNCTION make_download_month (of_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    first  date := date_trunc('month', of_day)::date;
    parent text;
    part   text;
BEGIN
    -- One at a time: "CRML", and a number that `database::Alone` keeps free.
    PERFORM pg_advisory_xact_lock(x'43524d4c'::int, 1001);
    IF EXISTS (SELECT FROM download_months WHERE month = first) THEN RETURN; END IF;
    FOREACH parent IN ARRAY ARRAY['download_counts', 'download_sums', 'download_days'] LOOP
        part := parent || to_char(first, '_YYYY_MM');
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) WITH (fillfactor = 50)', part, parent);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       parent, part, first, (first + interval '1 month')::date);
    END LOOP;
    INSERT INTO download_months (month) VALUES (first);
END $$;

SELECT make_download_month(month) FROM (SELECT DISTINCT date_trunc('month', day)::date AS month FROM downloads_daily_before) m;

INSERT INTO download_counts SELECT artifact_id, day, client, count FROM downloads_daily_before ORDER BY 1, 2, 3;

INSERT INTO download_sums (crate_id, axis, day, key, count)
SELECT v.crate_id, k.axis, d.day, k.key, sum(d.count)
FROM downloads_daily_before d JOIN artifacts a ON a.id = d.artifact_id JOIN versions v ON v.id = a.version_id,
     LATERAL (VALUES ('version', v.version), ('target', a.target), ('kind', a.kind), ('client', d.client)) AS k (axis, key)
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4;

INSERT INTO download_days (crate_id, day, count)
SELECT v.crate_id, d.day, sum(d.count)
FROM downloads_daily_before d JOIN artifacts a ON a.id = d.artifact_id JOIN versions v ON v.id = a.version_id
GROUP BY 1, 2 ORDER BY 1, 2;

DROP TABLE downloads_daily_before;

-- The OFFSET makes it a view that nobody can write to.
CREATE VIEW downloads_daily AS SELECT artifact_id, day, client, count FROM download_counts OFFSET 0;

-- What is counted ahead of its turn is kept as ranges: of each number of before one that begins and ends with it.
UPDATE download_batches
SET ahead = (SELECT coalesce(array_agg(number ORDER BY number), '{}') FROM unnest(ahead) number, generate_series(1, 2))
WHERE ahead <> '{}';
