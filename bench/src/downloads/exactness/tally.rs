//! What the clients saw, row by row, and how it compares with what the table says. Pure.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::atomic::{AtomicU64, Ordering},
};

/// What is downloaded, and the class of who does: a row of a day.
pub(super) type Key = (i64, &'static str);

/// Counts of each key, by its position: sixteen bytes each, and no lock.
#[derive(Debug)]
pub(super) struct Tally {
    keys: Vec<Key>,
    cells: Vec<Cell>,
}

#[derive(Debug, Default)]
struct Cell {
    answered: AtomicU64,
    in_flight: AtomicU64,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) artifact: i64,
    /// Days since 1970.
    pub(super) day: i32,
    pub(super) class: String,
    pub(super) count: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) answered: u64,
    /// Sent, and cut off before the answer was there: each counts or not.
    pub(super) in_flight: u64,
    pub(super) counted: u64,
    /// Rows of the table.
    pub(super) rows: usize,
    pub(super) lost: u64,
    pub(super) twice: u64,
    /// Where something is lost or counted twice.
    pub(super) wrong: Vec<Wrong>,
}

/// A row, as the clients saw it and as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    artifact: i64,
    class: String,
    answered: u64,
    in_flight: u64,
    counted: u64,
}

impl Verdict {
    /// How many of those in flight were counted.
    pub(super) fn in_flight_counted(&self) -> u64 {
        (self.counted + self.lost).saturating_sub(self.answered + self.twice)
    }

    fn add(&mut self, artifact: i64, class: &str, answered: u64, in_flight: u64, counted: u64) {
        let lost = answered.saturating_sub(counted);
        let twice = counted.saturating_sub(answered + in_flight);
        self.answered += answered;
        self.in_flight += in_flight;
        self.counted += counted;
        self.lost += lost;
        self.twice += twice;
        if lost + twice > 0 {
            self.wrong.push(Wrong { artifact, class: class.to_owned(), answered, in_flight, counted });
        }
    }
}

impl Tally {
    pub(super) fn new(keys: Vec<Key>) -> Self {
        let cells = keys.iter().map(|_| Cell::default()).collect();
        Self { keys, cells }
    }

    pub(super) fn answered(&self, position: usize) {
        self.cells[position].answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn in_flight(&self, position: usize) {
        self.cells[position].in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A run over midnight is compared over both of its days: which one a request was counted on only its node knows.
    pub(super) fn compare(&self, rows: &[Row], days: &RangeInclusive<i32>) -> Verdict {
        let mut verdict = Verdict { rows: rows.len(), ..Verdict::default() };
        let mut counted: BTreeMap<(i64, &str), u64> = BTreeMap::new();
        for row in rows {
            if days.contains(&row.day) {
                *counted.entry((row.artifact, &row.class)).or_default() += row.count;
            } else {
                verdict.add(row.artifact, &row.class, 0, 0, row.count);
            }
        }
        for ((artifact, class), cell) in self.keys.iter().zip(&self.cells) {
            let (answered, in_flight) =
                (cell.answered.load(Ordering::Relaxed), cell.in_flight.load(Ordering::Relaxed));
            let counted = counted.remove(&(*artifact, *class)).unwrap_or_default();
            verdict.add(*artifact, class, answered, in_flight, counted);
        }
        // Nobody has asked for what is left.
        for ((artifact, class), counted) in counted {
            verdict.add(artifact, class, 0, 0, counted);
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: i32 = 20_000;

    fn row(artifact: i64, day: i32, class: &str, count: u64) -> Row {
        Row { artifact, day, class: class.into(), count }
    }

    fn tally() -> Tally {
        let tally = Tally::new(vec![(1, "curl"), (1, "apt"), (2, "curl")]);
        for (position, answered, in_flight) in [(0, 5, 0), (1, 3, 2)] {
            (0..answered).for_each(|_| tally.answered(position));
            (0..in_flight).for_each(|_| tally.in_flight(position));
        }
        tally
    }

    #[test]
    fn what_was_in_flight_counts_or_not() {
        for counted in 3..=5 {
            let rows = [row(1, TODAY, "curl", 5), row(1, TODAY, "apt", counted)];
            let verdict = tally().compare(&rows, &(TODAY..=TODAY));
            let expected =
                Verdict { answered: 8, in_flight: 2, counted: 5 + counted, rows: 2, ..Verdict::default() };
            assert_eq!(verdict, expected);
            assert_eq!(verdict.in_flight_counted(), counted - 3);
        }
    }

    #[test]
    fn one_row_does_not_make_up_for_another() {
        let rows = [row(1, TODAY, "curl", 4), row(1, TODAY, "apt", 6)];
        let verdict = tally().compare(&rows, &(TODAY..=TODAY));
        assert_eq!((verdict.lost, verdict.twice, verdict.in_flight_counted()), (1, 1, 2));
        assert_eq!(verdict.wrong.len(), 2);
        let verdict = tally().compare(&[], &(TODAY..=TODAY));
        assert_eq!((verdict.lost, verdict.twice), (8, 0));
    }

    #[test]
    fn what_nobody_asked_for_is_counted_twice() {
        let good = [row(1, TODAY, "curl", 5), row(1, TODAY, "apt", 3)];
        for (more, twice) in [
            (row(2, TODAY, "curl", 1), 1),
            (row(3, TODAY, "curl", 2), 2),
            (row(1, TODAY, "cargo", 3), 3),
            (row(1, TODAY - 1, "curl", 4), 4),
        ] {
            let rows = [good.as_slice(), std::slice::from_ref(&more)].concat();
            let verdict = tally().compare(&rows, &(TODAY..=TODAY));
            assert_eq!((verdict.lost, verdict.twice), (0, twice), "{more:?}");
        }
    }

    #[test]
    fn over_midnight_both_days_are_one() {
        let rows = [row(1, TODAY, "curl", 2), row(1, TODAY + 1, "curl", 3), row(1, TODAY + 1, "apt", 3)];
        let verdict = tally().compare(&rows, &(TODAY..=TODAY + 1));
        assert_eq!((verdict.lost, verdict.twice, verdict.counted), (0, 0, 8));
    }
}
