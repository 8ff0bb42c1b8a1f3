//! How soon counts are answered when there are ten million of them: for a crate of the middle, for the one with the most
//! files, and for the crates with the most downloads.

use super::cluster::Measured;
use crate::statistics::{Percentiles, hundredths};
use anyhow::{Result, ensure};
use cratemill_stack::Options;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::time::Instant;

/// With five classes of clients on ninety days: ten million rows.
const ARTIFACTS: u32 = 22_200;
/// Of the crate that has twenty times as many as the others.
const MORE_VERSIONS: i32 = 100;
const ASKED: usize = 300;

/// A version more each time, for both targets, of the first crate.
const HEAVY: &str = "
    WITH v AS (INSERT INTO versions (crate_id, version, sha256)
               SELECT id, '2.' || n || '.0', repeat('0', 64) FROM crates, generate_series(1, $1) n WHERE name = 'bench-1'
               RETURNING id)
    INSERT INTO artifacts (version_id, kind, target, features, job_id, attempt, position, name, size, sha256, object,
                           manifest, signature, builder_key_id)
    SELECT v.id, 'tarball', t, 'default', v.id, 1, 0, 'n', 1, repeat('0', 64), 'o', '', '', k.id
    FROM v, builder_keys k, unnest('{a,b}'::text[]) t";

/// As counters do, day after day: rows lie in the order in which they came.
const COUNTS: &str = "
    INSERT INTO download_counts (artifact_id, day, client, count)
    SELECT a.id, current_date - $1, client, 1 + (a.id * 7 + $1 * 13) % 100
    FROM artifacts a, unnest('{apt,browser,cargo,curl,other}'::text[]) client ORDER BY 1, 2, 3";
const SUMS: &str = "
    INSERT INTO download_sums (crate_id, axis, day, key, count)
    SELECT v.crate_id, k.axis, d.day, k.key, sum(d.count)
    FROM download_counts d JOIN artifacts a ON a.id = d.artifact_id JOIN versions v ON v.id = a.version_id,
         LATERAL (VALUES ('version', v.version), ('target', a.target), ('kind', a.kind), ('client', d.client)) k (axis, key)
    GROUP BY 1, 2, 3, 4 ORDER BY 3, 1, 2, 4";
const DAYS: &str = "
    INSERT INTO download_days (crate_id, day, count)
    SELECT v.crate_id, d.day, sum(d.count)
    FROM download_counts d JOIN artifacts a ON a.id = d.artifact_id JOIN versions v ON v.id = a.version_id
    GROUP BY 1, 2 ORDER BY 2, 1";

pub(super) async fn measure() -> Result<Value> {
    let options = Options { api: 1, counter: 0, ..Options::default() };
    let measured = Measured::start(options, ARTIFACTS).await?;
    let mut conn = PgConnection::connect(&measured.cluster.postgres.url()).await?;
    let rows = fill(&mut conn).await?;
    println!("{rows} rows of counts");
    let mut result = json!({ "reads_rows": rows });
    let (mut worst, crates) = (0.0_f64, [("", "bench-1000"), ("_heaviest", "bench-1")]);
    for by in ["day", "version", "target", "client"] {
        for (which, name) in crates {
            let path = format!("/api/v1/crates/{name}/downloads?by={by}");
            let times = ask(&measured, &path).await?;
            worst = worst.max(times.at(50));
            tell(&mut result, &format!("{by}{which}"), &times);
        }
    }
    tell(&mut result, "top", &ask(&measured, "/api/v1/downloads").await?);
    result["reads_ms"] = hundredths(worst).into();
    measured.cluster.stop().await?;
    Ok(result)
}

async fn fill(conn: &mut PgConnection) -> Result<i64> {
    sqlx::query(HEAVY).bind(MORE_VERSIONS).execute(&mut *conn).await?;
    for month in 0..4 {
        sqlx::query("SELECT make_download_month((current_date - make_interval(months => $1))::date)")
            .bind(month)
            .execute(&mut *conn)
            .await?;
    }
    for day in (0..90).rev() {
        sqlx::query(COUNTS).bind(day).execute(&mut *conn).await?;
    }
    for sql in [SUMS, DAYS] {
        sqlx::query(sql).execute(&mut *conn).await?;
    }
    sqlx::raw_sql("VACUUM ANALYZE").execute(&mut *conn).await?;
    Ok(sqlx::query_scalar("SELECT count(*) FROM download_counts").fetch_one(conn).await?)
}

/// Of a node, past the load balancer; one after the other.
async fn ask(measured: &Measured, path: &str) -> Result<Percentiles> {
    let (http, node) = (measured.cluster.client(), measured.nodes()?[0]);
    let url = format!("http://{node}{path}");
    let mut times = Vec::with_capacity(ASKED);
    for _ in 0..ASKED {
        let began = Instant::now();
        let answer = http.http().get(&url).send().await?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        ensure!(status == 200 && body.len() > 100, "{url}: {status}");
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    Percentiles::of(times)
}

fn tell(result: &mut Value, what: &str, times: &Percentiles) {
    let (p50, p99) = (hundredths(times.at(50)), hundredths(times.at(99)));
    println!("  by {what:<20}{p50:>9.2} ms median, {p99:.2} p99");
    result[format!("reads_{what}_p50_ms")] = p50.into();
    result[format!("reads_{what}_p99_ms")] = p99.into();
}
