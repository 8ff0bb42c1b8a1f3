//! Batches of nodes that are out of their mind: pure.
//!
//! The bus notes when it stored a message, by clocks of its own. A count is at most as old as a journal keeps it, and of
//! tomorrow at most where a node is a little ahead at midnight. What is neither was counted by a clock that is wrong, and
//! counts on the day on which the bus had it.

use cratemill_protocol::{bus::DownloadBatch, download::JOURNAL_DAYS, subjects};
use time::OffsetDateTime;

const DAY_S: i64 = 24 * 60 * 60;
/// Downloads of one file that are one count: more than a node can serve between two batches, and so few that no sum of
/// sums leaves the numbers that the database has.
const MAX_COUNT: u64 = 1 << 40;

/// What was put right in a batch, in downloads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Got another day.
    pub(crate) redated: u64,
    /// Cannot have been so many, and are left out.
    pub(crate) cut: u64,
}

/// Whether it can be any node's: its name is a key in the database, which takes not just any text.
pub(crate) fn has_sender(batch: &DownloadBatch) -> bool {
    subjects::is_node_name(&batch.node)
}

/// `stored` is when the bus had it.
pub(crate) fn mend(batch: &mut DownloadBatch, stored: OffsetDateTime) -> Mended {
    let now_s = stored.unix_timestamp();
    let today = i32::try_from(now_s.div_euclid(DAY_S)).unwrap_or_default();
    // A day for midnight passing on the way.
    let sane = today - JOURNAL_DAYS - 1..=today + 1;
    let sane_s = now_s - i64::from(JOURNAL_DAYS + 1) * DAY_S..=now_s + DAY_S;
    let mut mended = Mended::default();
    for count in &mut batch.counts {
        mended.cut = mended.cut.saturating_add(count.count.saturating_sub(MAX_COUNT));
        count.count = count.count.min(MAX_COUNT);
        if !sane.contains(&count.day) {
            count.day = today;
            mended.redated = mended.redated.saturating_add(count.count);
        }
    }
    for install in &mut batch.installs {
        if !sane.contains(&install.day) {
            install.day = today;
            mended.redated = mended.redated.saturating_add(1);
        }
        if !sane_s.contains(&install.at_s) {
            install.at_s = now_s;
        }
    }
    mended
}

#[cfg(test)]
mod tests {
    use super::*;
    use cratemill_protocol::{
        ArtifactId,
        bus::{ClientClass, DownloadCount, Install},
    };

    #[test]
    fn only_days_that_cannot_be_are_others() {
        let today = 20_777;
        let stored = OffsetDateTime::from_unix_timestamp(i64::from(today) * DAY_S + 3).unwrap();
        for (day, expected) in [
            (today, today),
            (today + 1, today + 1),
            (today - 1, today - 1),
            (today - JOURNAL_DAYS, today - JOURNAL_DAYS),
            (today + 2, today),
            (today - JOURNAL_DAYS - 2, today),
            (0, today),
            (i32::MAX, today),
            (i32::MIN, today),
        ] {
            let (artifact, client) = (ArtifactId(1), ClientClass::Curl);
            let mut batch = DownloadBatch {
                counts: vec![DownloadCount { artifact, day, client, count: 3 }],
                installs: vec![Install { artifact, day, client, who: 1, at_s: 0 }],
                ..DownloadBatch::default()
            };
            let mended = mend(&mut batch, stored);
            assert_eq!((batch.counts[0].day, batch.installs[0].day), (expected, expected), "{day}");
            assert_eq!(mended, Mended { redated: if day == expected { 0 } else { 4 }, cut: 0 }, "{day}");
        }
    }

    #[test]
    fn only_moments_that_cannot_be_are_others() {
        let now_s = 20_777 * DAY_S + 3;
        let week_s = i64::from(JOURNAL_DAYS) * DAY_S;
        for (at_s, expected) in [
            (now_s - 1, now_s - 1),
            (now_s + 60, now_s + 60),
            (now_s - week_s, now_s - week_s),
            (now_s - week_s - 2 * DAY_S, now_s),
            (now_s + 2 * DAY_S, now_s),
            (i64::MIN, now_s),
            (i64::MAX, now_s),
        ] {
            let (artifact, client) = (ArtifactId(1), ClientClass::Binstall);
            let install = Install { artifact, day: 20_777, client, who: 1, at_s };
            let mut batch = DownloadBatch { installs: vec![install], ..DownloadBatch::default() };
            mend(&mut batch, OffsetDateTime::from_unix_timestamp(now_s).unwrap());
            assert_eq!(batch.installs[0].at_s, expected, "{at_s}");
        }
    }

    #[test]
    fn nobody_is_asked_so_often() {
        for (sent, counted) in
            [(1, 1), (MAX_COUNT, MAX_COUNT), (MAX_COUNT + 1, MAX_COUNT), (u64::MAX, MAX_COUNT)]
        {
            let (artifact, client) = (ArtifactId(1), ClientClass::Curl);
            let count = DownloadCount { artifact, day: 0, client, count: sent };
            let mut batch = DownloadBatch { counts: vec![count], ..DownloadBatch::default() };
            let mended = mend(&mut batch, OffsetDateTime::UNIX_EPOCH);
            assert_eq!((batch.counts[0].count, mended.cut), (counted, sent - counted));
        }
    }

    #[test]
    fn a_batch_has_a_sender() {
        let of = |node: &str| has_sender(&DownloadBatch { node: node.into(), ..DownloadBatch::default() });
        assert!(of("api-1"));
        assert!(!of("") && !of("a\0") && !of("all") && !of(&"n".repeat(65)));
    }
}
