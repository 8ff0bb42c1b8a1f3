//! What work costs the database beside time: log that it writes, and row versions that it leaves for vacuum.

use crate::statistics::count;
use anyhow::Result;
use sqlx::{PgPool, Postgres, Transaction};

/// Totals of a server and of one of its databases.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    wal_bytes: i64,
    dead: i64,
}

/// Of one job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    pub(super) wal_bytes: f64,
    /// Row versions that an update or a deletion made dead, whatever vacuum has done about them since.
    pub(super) dead_tuples: f64,
}

impl Totals {
    pub(super) async fn read(pool: &PgPool) -> Result<Self> {
        // What idle sessions have counted is told at their next statement; this makes ours tell.
        sqlx::query("SELECT pg_stat_force_next_flush()").execute(pool).await?;
        let (wal_bytes, dead) = sqlx::query_as(
            "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
                    (SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables)",
        )
        .fetch_one(pool)
        .await?;
        Ok(Self { wal_bytes, dead })
    }

    pub(super) fn since(self, before: Self, jobs: usize) -> Costs {
        #[allow(clippy::cast_precision_loss, reason = "exact for whatever is counted here")]
        let each = |total: i64| total as f64 / count(jobs);
        Costs {
            wal_bytes: each(self.wal_bytes - before.wal_bytes),
            dead_tuples: each(self.dead - before.dead),
        }
    }
}

/// A transaction that sees the database as it is now, and keeps vacuum from removing what dies after it.
pub(super) async fn old_snapshot(pool: &PgPool) -> Result<Transaction<'static, Postgres>> {
    let mut old = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    sqlx::query("SELECT FROM pg_class LIMIT 1").execute(&mut *old).await?;
    Ok(old)
}
