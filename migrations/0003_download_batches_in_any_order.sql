-- Counters that share a consumer apply batches of one publisher in any order, and a crash puts some of them off:
-- `batch` is now the newest below which all are counted, and `ahead` are those counted beyond it.
ALTER TABLE download_batches ADD COLUMN ahead bigint[] NOT NULL DEFAULT '{}';
