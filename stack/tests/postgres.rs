//! The Postgres of a stack: its faults, and starting on what an earlier one left.

#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use cratemill_stack::{data_dir::DataDir, postgres::Postgres, secrets::Secrets};
use sqlx::{Connection, PgConnection};
use std::fs;

async fn start(data_dir: &DataDir) -> Postgres {
    Postgres::start(data_dir, &mut Secrets::open(data_dir.path()).unwrap(), false).await.unwrap()
}

async fn numbers(postgres: &Postgres) -> Vec<i32> {
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    sqlx::query_scalar("SELECT n FROM numbers ORDER BY n").fetch_all(&mut connection).await.unwrap()
}

#[tokio::test]
async fn what_is_committed_outlives_kills_restarts_and_a_second_start() {
    let data_dir = DataDir::temporary().unwrap();
    let mut postgres = start(&data_dir).await;
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    sqlx::query("CREATE TABLE numbers AS SELECT 1 AS n").execute(&mut connection).await.unwrap();
    postgres.kill9().await.unwrap();
    assert!(PgConnection::connect(&postgres.url()).await.is_err(), "it is dead");
    postgres.restart().await.unwrap();
    assert_eq!(numbers(&postgres).await, [1]);
    drop(postgres);

    // Its pid belongs to another process now: to this one.
    let (folder, _) = data_dir.for_postgres().unwrap();
    let file = folder.join("data/postmaster.pid");
    let stale = format!("{}\n{}\n0\n1\n\n127.0.0.1\n0 0\nready\n", std::process::id(), folder.display());
    fs::write(&file, stale).unwrap();
    let mut postgres = start(&data_dir).await;
    assert_eq!(numbers(&postgres).await, [1]);
    postgres.stop().await.unwrap();
    assert!(!file.exists(), "it stopped in order");
}

#[tokio::test]
async fn a_password_is_wanted() {
    let data_dir = DataDir::temporary().unwrap();
    let postgres = start(&data_dir).await;
    let password = Secrets::open(data_dir.path()).unwrap().get("postgres").unwrap();
    let url = postgres.url().replace(&password, "wrong");
    assert!(PgConnection::connect(&url).await.unwrap_err().to_string().contains("password"));
}
