//! Logs of attempts whose builders say that they wrote nothing, and which of them is believed.

use crate::support::{Builder, LINUX, Store, lease_now, new_job, version};
use cratemill_dispatcher::{
    logs::{self, Archive},
    wakes::Wakes,
};
use cratemill_protocol::{
    Attempt, FailureClass, JobId, JobState, Kind, Outcome,
    bus::{self, LogBody, LogMessage},
    job::Timings,
    subjects,
};
use cratemill_service::{bus::Bus, streams};
use cratemill_stack::nats::Nats;
use cratemill_store::{
    PgConnection, PgPool, attempts, queue,
    queue::{End, Ended, Ending},
};
use flate2::read::GzDecoder;
use futures_util::TryStreamExt;
use std::{io::Read, sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const FIRST: Attempt = Attempt(1);

/// Ends the job's first attempt as one that said nothing.
async fn fail_silently(conn: &mut PgConnection, job: JobId, builder: &Builder) {
    let outcome = Outcome::Failed {
        class: FailureClass::Build,
        message: "it does not compile".into(),
        stage: None,
        timings: Timings::default(),
    };
    let end = End::Failed { class: FailureClass::Build, message: "it does not compile" };
    let ended = Ended { outcome: &outcome, last_seq: Some(0) };
    let ending = Ending { job, attempt: FIRST, builder: builder.id, end, ended };
    assert_eq!(queue::end_all(conn, &[ending], false).await.unwrap().len(), 1);
}

async fn object(pool: &PgPool, job: JobId) -> (String, Option<i64>) {
    let archived = async {
        loop {
            let log = attempts::log(&mut pool.acquire().await.unwrap(), job, None).await.unwrap().unwrap();
            if let Some(object) = log.log_object {
                return (object, log.log_bytes);
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, archived).await.expect("the log is archived")
}

#[sqlx::test(migrations = "../migrations")]
async fn empty_logs_share_an_object_and_what_was_said_is_kept(pool: PgPool) {
    let mut store = Store::start().await;
    let nats = Nats::start(&store.data, &mut store.secrets).await.unwrap();
    let bus = Bus::connect(&nats.url("dispatcher").unwrap().parse().unwrap(), "dispatcher").await.unwrap();
    let api = Bus::connect(&nats.url("api").unwrap().parse().unwrap(), "api").await.unwrap();
    let shutdown = CancellationToken::new();
    streams::ensure(&bus, 1, &shutdown).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let (builder, version) = (Builder::connect(&mut conn, 1).await, version(&mut conn).await);
    let mut jobs = Vec::new();
    for kind in [Kind::Tarball, Kind::Debian, Kind::Rustdoc] {
        let job = queue::enqueue(&mut conn, &new_job(version, kind, LINUX)).await.unwrap().id();
        lease_now(&mut conn, job, &builder, 60).await;
        assert!(queue::accept(&mut conn, job, FIRST, builder.id, 60).await.unwrap());
        jobs.push(job);
    }
    let publish = async |job: JobId, seq, body| {
        let message = LogMessage { job, attempt: FIRST, seq, at_ms: 0, body };
        let id = format!("{job}-{seq}");
        api.store(&subjects::log(job, FIRST), &id, bus::encode(&message).into(), PATIENCE).await.unwrap();
    };
    // One was ended by a dispatcher that died before it could say where the log is, and of one the builder is wrong.
    publish(jobs[1], 1, LogBody::End { state: JobState::Failed }).await;
    publish(jobs[2], 1, LogBody::Text { offset: 0, text: "it spoke\n".into() }).await;
    for job in &jobs {
        fail_silently(&mut conn, *job, &builder).await;
    }

    let archive = Archive {
        pool: pool.clone(),
        bus: bus.clone(),
        objects: store.objects.clone(),
        log_bytes: 1 << 20,
        empty: Arc::default(),
    };
    let running = tokio::spawn(logs::run(archive, Arc::new(Wakes::default()), shutdown.clone()));
    let (empty, bytes) = object(&pool, jobs[0]).await;
    assert_eq!((object(&pool, jobs[1]).await, bytes), ((empty.clone(), Some(0)), Some(0)));
    let (spoken, bytes) = object(&pool, jobs[2]).await;
    assert!(spoken != empty && bytes == Some(9), "{spoken} {bytes:?}");
    for (object, said) in [(&empty, ""), (&spoken, "it spoke\n")] {
        let packed = store.objects.get_bytes(object, 1 << 20).await.unwrap();
        let mut text = String::new();
        GzDecoder::new(packed.as_ref()).read_to_string(&mut text).unwrap();
        assert_eq!(text, said);
    }
    // Each has one end.
    let stream = bus.jetstream.get_stream(subjects::LOGS_STREAM).await.unwrap();
    let mut on_bus: Vec<(String, usize)> =
        stream.info_with_subjects(subjects::LOGS_ALL).await.unwrap().try_collect().await.unwrap();
    on_bus.sort();
    let counts: Vec<_> =
        jobs.iter().zip([1, 1, 2]).map(|(job, count)| (subjects::log(*job, FIRST), count)).collect();
    assert_eq!(on_bus, counts);
    shutdown.cancel();
    timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}
