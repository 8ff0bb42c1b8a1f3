//! Logs that are on the bus: every event once and in order, and nothing after the attempt's end.
//!
//! One reading of the whole stream tells of both. What is left of each log in memory is a [`Track`], so that it is the
//! number of logs on the bus that counts, not their length.

use super::{Auditor, CLOCK_SKEW, report::Check, scan::scan};
use cratemill_protocol::{
    Attempt, JobId,
    bus::{self, LogBody, LogMessage},
    subjects,
};
use cratemill_store::audit::logs::{self, Log};
use std::collections::HashMap;
use time::{Duration, OffsetDateTime};

/// An archived log leaves the bus within a minute, with the next dispatcher that sweeps.
const SWEPT: Duration = Duration::minutes(15);
/// Logs that the database is asked for at once.
const PAGE: usize = 1_000;

type Key = (JobId, Attempt);

/// What was read of one log.
#[derive(Debug, Default)]
struct Track {
    /// The number of the last event.
    seq: u64,
    /// Where its text ends.
    offset: u64,
    /// Events that came after the message that nothing follows.
    after_end: u64,
    ended: bool,
    /// When an API node received the last of the builder's events.
    at_ms: i64,
    /// When the last message was stored.
    stored: Option<OffsetDateTime>,
    /// The first thing that is wrong with it.
    fault: Option<String>,
}

impl Track {
    fn push(&mut self, message: &LogMessage) {
        if let LogBody::End { .. } = message.body {
            if std::mem::replace(&mut self.ended, true) {
                self.fault("its end is told twice".to_owned());
            }
            return;
        }
        self.after_end += u64::from(self.ended);
        self.at_ms = self.at_ms.max(message.at_ms);
        let expected = self.seq.saturating_add(1);
        if message.seq != expected {
            self.fault(format!("event {} comes where {expected} is due", message.seq));
        }
        self.seq = message.seq;
        if let LogBody::Text { offset, text } = &message.body {
            if *offset != self.offset {
                let (due, seq) = (self.offset, message.seq);
                self.fault(format!("the text of event {seq} begins at byte {offset}, and {due} is due"));
            }
            self.offset = offset.saturating_add(text.len() as u64);
        }
    }

    fn fault(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    /// Nothing says how it ended, and the archive has it: what came too late, or a log that ended and was archived after
    /// it was read here.
    fn was_overtaken(&self, log: &Log) -> bool {
        log.log_object.is_some() && !self.ended
    }

    /// What it wrote though it had lost its job. Its first event is missing where the rest was archived and purged.
    fn late(&self, log: &Log) -> Option<String> {
        let ended_at = log.ended_at?;
        let written = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.at_ms) * 1_000_000).ok()?;
        if self.after_end > 0 {
            Some(format!("{} events came after the end of its log", self.after_end))
        } else if self.was_overtaken(log) {
            Some("events came after its log was archived".to_owned())
        } else if written > ended_at + CLOCK_SKEW {
            let late_s = (written - ended_at).as_seconds_f64();
            Some(format!("its last event came {late_s:.1} s after its end"))
        } else {
            None
        }
    }

    /// What is wrong with it in itself, or beside its archive.
    fn wrong(&self, log: &Log, now: OffsetDateTime) -> Option<String> {
        if self.fault.is_some() {
            return self.fault.clone();
        }
        let archived = log.log_bytes.filter(|_| log.log_object.is_some())?;
        if u64::try_from(archived) != Ok(self.offset) {
            return Some(format!("the bus has {} bytes of text, and the archive {archived}", self.offset));
        }
        let age = now - self.stored?;
        (age > SWEPT).then(|| format!("archived, and still on the bus after {} s", age.whole_seconds()))
    }
}

#[derive(Default)]
struct Tracks {
    of: HashMap<Key, Track>,
    strangers: Vec<String>,
}

impl Tracks {
    fn take(&mut self, subject: &str, payload: &[u8], stored: OffsetDateTime) {
        let Some(key) = attempt_of(subject) else {
            return self.strangers.push(format!("{subject} is of no attempt"));
        };
        let track = self.of.entry(key).or_default();
        track.stored = Some(stored);
        match bus::decode::<LogMessage>(payload) {
            Ok(message) if (message.job, message.attempt) == key => track.push(&message),
            Ok(message) => {
                let (job, attempt) = (message.job, message.attempt);
                track.fault(format!("an event of {job}.{attempt} is among its own"));
            }
            Err(error) => track.fault(format!("an event cannot be read: {error}")),
        }
    }
}

fn attempt_of(subject: &str) -> Option<Key> {
    let (job, attempt) = subject.strip_prefix("log.")?.split_once('.')?;
    Some((job.parse().ok()?, attempt.parse().ok()?))
}

/// The logs on the bus, and what attempts wrote too late.
pub(super) async fn check(auditor: &Auditor) -> anyhow::Result<[Check; 2]> {
    let filter = auditor.scope.job.map_or_else(|| subjects::LOGS_ALL.to_owned(), subjects::log_of_job);
    let mut tracks = read(auditor, &filter).await?;
    let (mut on_bus, mut late) = (Check::new("bus-logs"), Check::new("late-logs"));
    tracks.strangers.into_iter().for_each(|finding| on_bus.find(finding));
    let mut keys: Vec<Key> = tracks.of.keys().copied().collect();
    keys.sort_unstable();
    for page in keys.chunks(PAGE) {
        // Asked after the reading: an attempt that is still open now wrote nothing too late.
        let mut conn = auditor.pool.acquire().await?;
        let rows = logs::of_attempts(&mut conn, page).await?;
        drop(conn);
        let rows: HashMap<Key, Log> = rows.into_iter().map(|log| ((log.job, log.attempt), log)).collect();
        for key in page {
            let row = rows.get(key);
            if row.is_some_and(|log| tracks.of[key].was_overtaken(log)) {
                // Archived before the row was read, so that this reading has its end, or nothing at all.
                let again = read(auditor, &subjects::log(key.0, key.1)).await?;
                tracks.of.remove(key);
                tracks.of.extend(again.of);
            }
            if let Some(track) = tracks.of.get(key) {
                judge(*key, track, row, &mut on_bus, &mut late);
            }
        }
    }
    Ok([on_bus, late])
}

async fn read(auditor: &Auditor, filter: &str) -> anyhow::Result<Tracks> {
    let mut tracks = Tracks::default();
    scan(&auditor.bus, subjects::LOGS_STREAM, filter, |stored| {
        tracks.take(stored.subject, stored.payload, stored.published);
    })
    .await?;
    Ok(tracks)
}

fn judge((job, attempt): Key, track: &Track, row: Option<&Log>, on_bus: &mut Check, late: &mut Check) {
    on_bus.looked_at += 1;
    let Some(row) = row else {
        return on_bus.find(format!("log {job}.{attempt} is of no attempt"));
    };
    late.looked_at += u64::from(row.ended_at.is_some());
    // What came too late is out of order as well: it is said once.
    if let Some(why) = track.late(row) {
        late.find(format!("attempt {job}.{attempt}: {why}"));
    } else if let Some(why) = track.wrong(row, OffsetDateTime::now_utc()) {
        on_bus.find(format!("attempt {job}.{attempt}: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{JobState, Stage};

    const AT: OffsetDateTime = time::macros::datetime!(2026-01-01 00:00 UTC);

    fn event(seq: u64, after_s: i64, body: LogBody) -> LogMessage {
        let at_ms = (AT.unix_timestamp() + after_s) * 1_000;
        LogMessage { job: JobId(1), attempt: Attempt(1), seq, at_ms, body }
    }

    fn text(seq: u64, offset: u64, text: &str) -> LogMessage {
        event(seq, 0, LogBody::Text { offset, text: text.into() })
    }

    fn end(seq: u64) -> LogMessage {
        event(seq, 60, LogBody::End { state: JobState::Failed })
    }

    fn log(ended: bool, archived: Option<i64>) -> Log {
        Log {
            job: JobId(1),
            attempt: Attempt(1),
            ended_at: ended.then_some(AT),
            log_object: archived.map(|_| "logs/1/1.gz".into()),
            log_bytes: archived,
            log_missing: archived.map(|_| 0),
        }
    }

    /// (late, wrong)
    fn judged(messages: &[LogMessage], log: &Log) -> (Option<String>, Option<String>) {
        let mut track = Track { stored: Some(AT), ..Track::default() };
        for message in messages {
            track.push(message);
        }
        (track.late(log), track.wrong(log, AT + Duration::minutes(1)))
    }

    #[test]
    fn a_log_is_good_at_each_of_its_stages() {
        let stage = event(2, 0, LogBody::Stage { stage: Stage::Build, offset: 0 });
        let whole = [text(1, 0, "ab"), stage, text(3, 2, "c"), end(4)];
        for (events, log) in [
            (&whole[..2], log(false, None)),
            (&whole[..3], log(true, None)),
            (&whole[..], log(true, None)),
            (&whole[..], log(true, Some(3))),
        ] {
            assert_eq!(judged(events, &log), (None, None), "{events:?}");
        }
        // Clocks differ, and an event may be under way when the lease ends.
        let soon = event(1, 4, LogBody::Text { offset: 0, text: String::new() });
        assert_eq!(judged(&[soon], &log(true, None)), (None, None));
    }

    #[test]
    fn gaps_repeats_and_holes_are_wrong() {
        for (messages, words) in [
            (vec![text(2, 0, "b")], "event 2 comes where 1 is due"),
            (vec![text(1, 0, "a"), text(1, 1, "a")], "event 1 comes where 2 is due"),
            (vec![text(1, 0, "a"), text(2, 2, "b")], "begins at byte 2, and 1 is due"),
            (vec![text(1, 0, "ab"), text(2, 1, "b")], "begins at byte 1, and 2 is due"),
            (vec![end(1), end(1)], "twice"),
        ] {
            let (late, wrong) = judged(&messages, &log(true, None));
            assert!(late.is_none() && wrong.as_deref().is_some_and(|why| why.contains(words)), "{wrong:?}");
        }
        let short = judged(&[text(1, 0, "abc"), end(2)], &log(true, Some(2)));
        assert!(short.1.is_some_and(|why| why.contains("3 bytes of text, and the archive 2")));
        let mut kept = Track { stored: Some(AT), ..Track::default() };
        kept.push(&end(1));
        let still = kept.wrong(&log(true, Some(0)), AT + Duration::hours(1));
        assert!(still.is_some_and(|why| why.contains("still on the bus")));
    }

    #[test]
    fn what_comes_after_the_end_is_late() {
        let later = event(1, 6, LogBody::Text { offset: 0, text: String::new() });
        for (messages, log, words) in [
            (vec![text(1, 0, "a"), end(2), text(2, 1, "b")], log(true, None), "1 events came after"),
            (vec![text(9, 7, "b")], log(true, Some(7)), "after its log was archived"),
            (vec![later], log(true, None), "6.0 s after its end"),
        ] {
            let (late, _) = judged(&messages, &log);
            assert!(late.as_deref().is_some_and(|why| why.contains(words)), "{late:?}");
        }
    }
}
