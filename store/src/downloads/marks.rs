//! Which batches are counted: one mark for each run of each publisher.
//!
//! The publisher's own numbers decide, not the bus's: (node, epoch) names a run of a publisher, and its batches are
//! numbered from 1. They may come in any order and any number of times.

use super::write::Error;
use deadpool_postgres::Transaction;
use std::collections::{BTreeMap, BTreeSet};

/// Of a run at once, before the oldest is taken to be one that the publisher left. Twice what the bus has under way at once
/// (4,096 messages), each of which may be one: what a counter that died had comes again, however far the others have got.
const MAX_GAPS: usize = 8_192;

/// Which batches of a publisher's run are counted.
#[derive(Debug, Default)]
pub(super) struct Mark {
    /// All up to this one.
    upto: i64,
    /// And these beyond it: from the first to the last of each, with a gap before each.
    ahead: BTreeMap<i64, i64>,
}

impl Mark {
    /// Notes a batch as counted; false if it was already.
    pub(super) fn take(&mut self, number: u64) -> bool {
        // As the database can hold it; no publisher counts that far.
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        let before = self.ahead.range(..=number).next_back();
        if number <= self.upto || before.is_some_and(|(_, last)| number <= *last) {
            return false;
        }
        self.add(number, number);
        if self.ahead.len() > MAX_GAPS {
            self.upto = self.ahead.pop_first().map_or(self.upto, |(_, last)| last);
        }
        true
    }

    /// What is between these is not counted yet.
    fn add(&mut self, mut first: i64, mut last: i64) {
        if let Some((before, _)) =
            self.ahead.range(..first).next_back().filter(|range| range.1.checked_add(1) == Some(first))
        {
            first = *before;
        }
        if let Some(end) = last.checked_add(1).and_then(|next| self.ahead.remove(&next)) {
            last = end;
        }
        if self.upto.checked_add(1) == Some(first) {
            self.ahead.remove(&first);
            self.upto = last;
        } else {
            self.ahead.insert(first, last);
        }
    }

    /// As the table has it: the first and the last of each, one after the other.
    fn of(upto: i64, ahead: &[i64]) -> Self {
        let mut mark = Self { upto, ahead: BTreeMap::new() };
        for (&first, &last) in ahead.iter().step_by(2).zip(ahead.iter().skip(1).step_by(2)) {
            mark.add(first, last);
        }
        mark
    }

    fn flat(&self) -> Vec<i64> {
        self.ahead.iter().flat_map(|(first, last)| [*first, *last]).collect()
    }
}

pub(super) type Publisher = (String, i64);
pub(super) type Marks = BTreeMap<Publisher, Mark>;

/// What is counted of each of these; the rows stay locked, in one order.
pub(super) async fn lock(tx: &Transaction<'_>, publishers: &BTreeSet<Publisher>) -> Result<Marks, Error> {
    let nodes: Vec<&str> = publishers.iter().map(|publisher| publisher.0.as_str()).collect();
    let epochs: Vec<i64> = publishers.iter().map(|publisher| publisher.1).collect();
    let add = tx
        .prepare_cached(
            "INSERT INTO download_batches (node, epoch, batch)
             SELECT node, epoch, 0 FROM unnest($1::text[], $2::bigint[]) AS p (node, epoch) ORDER BY 1, 2
             ON CONFLICT DO NOTHING",
        )
        .await?;
    let lock = tx
        .prepare_cached(
            "SELECT node, epoch, batch, ahead FROM download_batches
             WHERE (node, epoch) IN (SELECT * FROM unnest($1::text[], $2::bigint[])) ORDER BY node, epoch FOR UPDATE",
        )
        .await?;
    tx.execute(&add, &[&nodes, &epochs]).await?;
    let rows = tx.query(&lock, &[&nodes, &epochs]).await?;
    let mark = |row: tokio_postgres::Row| {
        let ahead: Vec<i64> = row.try_get(3)?;
        Ok(((row.try_get(0)?, row.try_get(1)?), Mark::of(row.try_get(2)?, &ahead)))
    };
    rows.into_iter().map(mark).collect()
}

/// A row each: Postgres has no arrays of arrays of different lengths, and a group comes from few publishers.
pub(super) async fn write(tx: &Transaction<'_>, marks: &Marks) -> Result<(), Error> {
    let update = tx
        .prepare_cached(
            "UPDATE download_batches SET batch = $3, ahead = $4, seen_at = now() WHERE node = $1 AND epoch = $2",
        )
        .await?;
    let updates = marks.iter().map(async |((node, epoch), mark)| {
        match tx.execute(&update, &[node, epoch, &mark.upto, &mark.flat()]).await? {
            1 => Ok(()),
            // It was silent for so long that its mark was forgotten, at the very moment at which it was heard of again.
            _ => Err(Error::MarkGone),
        }
    });
    futures_util::future::try_join_all(updates).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn batches_are_taken_once_in_any_order() {
        let mut mark = Mark::default();
        for (number, expected) in
            [(0, false), (2, true), (3, true), (2, false), (1, true), (3, false), (5, true)]
        {
            assert_eq!(mark.take(number), expected, "{number}");
        }
        assert_eq!((mark.upto, mark.ahead.len()), (3, 1));
    }

    /// A counter that died had the second, and another one went on meanwhile.
    #[test]
    fn a_gap_is_kept_however_far_the_others_get() {
        let mut mark = Mark::default();
        assert!(mark.take(1));
        assert!((3..=100_000).all(|number| mark.take(number)));
        assert_eq!((mark.upto, mark.flat()), (1, vec![3, 100_000]));
        assert!(mark.take(2));
        assert_eq!((mark.upto, mark.ahead.len()), (100_000, 0));
    }

    #[test]
    fn gaps_for_ever_do_not_grow_for_ever() {
        let mut mark = Mark::default();
        let gaps = MAX_GAPS as u64;
        assert!((1..=gaps).all(|gap| mark.take(2 * gap)));
        assert_eq!((mark.upto, mark.ahead.len()), (0, MAX_GAPS));
        assert!(mark.take(2 * gaps + 2));
        assert_eq!((mark.upto, mark.ahead.len()), (2, MAX_GAPS));
        assert!(!mark.take(1));
        assert!(mark.take(3));
    }

    /// What was written one by one is read as what it is.
    #[test]
    fn rows_of_before_are_read() {
        let mut mark = Mark::of(4, &[6, 6, 7, 7, 9, 12]);
        assert_eq!(mark.flat(), [6, 7, 9, 12]);
        assert!(!mark.take(7) && !mark.take(10));
        assert!(mark.take(5));
        assert_eq!((mark.upto, mark.flat()), (7, vec![9, 12]));
    }

    proptest! {
        #[test]
        fn as_if_each_were_remembered(numbers in prop::collection::vec(1_u64..40, 0..120)) {
            let (mut mark, mut taken) = (Mark::default(), BTreeSet::new());
            for number in numbers {
                prop_assert_eq!(mark.take(number), taken.insert(number), "{}", number);
                let upto = (1..100).find(|number| !taken.contains(number)).unwrap() - 1;
                prop_assert_eq!(mark.upto.unsigned_abs(), upto);
                let ahead = mark.flat();
                prop_assert!(ahead.chunks(2).all(|range| range[0] <= range[1]));
                let pairs = ahead.windows(2).skip(1).step_by(2);
                prop_assert!(pairs.into_iter().all(|gap| gap[0] + 1 < gap[1]));
                mark = Mark::of(mark.upto, &ahead);
            }
        }
    }
}
