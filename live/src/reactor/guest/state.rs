//! What a reactor knows of a client of CBOR: sixteen bytes, and more only while it says something.

use crate::cbor::Packed;
use bytes::Bytes;
use std::collections::VecDeque;

/// Messages that wait before the socket is not read any more,
const MAX_WAITING: usize = 256;
/// and their bytes.
const MAX_WAITING_BYTES: usize = 256 * 1024;

/// A moment of a reactor, in tenths of a second. They begin anew every two hours: what is compared is a minute or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reactor) struct Tenths(pub(in crate::reactor) u16);

impl Tenths {
    pub(super) fn since(self, earlier: Self) -> u16 {
        self.0.wrapping_sub(earlier.0)
    }
}

/// What a client said.
#[derive(Debug)]
pub enum Said {
    Command(Vec<u8>),
    Text,
    TooBig,
}

impl Said {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Command(bytes) => bytes.len(),
            Self::Text | Self::TooBig => 0,
        }
    }
}

pub(in crate::reactor) struct Guest {
    pub(super) session: Packed,
    /// When the first of the pings was written that are out, it had everything up to there: the lower half of that number,
    pub(super) written: u32,
    /// if it is known.
    pub(super) is_known: bool,
    /// When it said something,
    pub(super) heard: Tenths,
    /// and when it got a ping.
    pub(super) pinged: Tenths,
    pub(super) pings: Pings,
    /// Somebody does what it said.
    pub(super) busy: bool,
    pub(super) paused: bool,
}

/// How many pings a client did not answer, and whether it answered any since the last one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pings(u8);

impl Pings {
    const ANSWERED: u8 = 1 << 7;

    pub(super) fn are_out(self) -> bool {
        self.0 & !Self::ANSWERED > 0
    }

    pub(super) fn is_answered(self) -> bool {
        self.0 & Self::ANSWERED > 0
    }

    pub(super) fn one_more(&mut self) {
        self.0 = ((self.0 & !Self::ANSWERED) + 1).min(Self::ANSWERED - 1);
    }

    pub(super) fn one_less(&mut self) {
        self.0 = Self::ANSWERED | (self.0 & !Self::ANSWERED).saturating_sub(1);
    }
}

/// With a code, or without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Goodbye(pub(super) Option<u16>);

/// What a client is in the middle of.
#[derive(Default)]
pub(in crate::reactor) struct Work {
    pub(super) waiting: VecDeque<Said>,
    pub(super) waiting_bytes: usize,
    /// Of what somebody does.
    pub(super) working_bytes: usize,
    /// What it has said, as it is counted among that of all.
    pub(super) counted: usize,
    /// It said goodbye: so it is answered when all is done.
    pub(super) goodbye: Option<Goodbye>,
    /// Since when it is in the middle of a message.
    pub(super) half_since: Option<Tenths>,
    /// What waits for the end of a message of several frames,
    pub(super) held: VecDeque<Bytes>,
    /// all of which are there.
    pub(super) is_said: bool,
}

impl Guest {
    pub(in crate::reactor) fn new(session: Packed, now: Tenths) -> Self {
        Self {
            session,
            written: 0,
            is_known: false,
            heard: now,
            pinged: now,
            pings: Pings::default(),
            busy: true,
            paused: false,
        }
    }

    /// A ping is out, before which everything up to there was written, as far as anybody can say.
    #[allow(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(super) fn note(&mut self, written: Option<u64>) {
        (self.written, self.is_known) = (written.unwrap_or(0) as u32, written.is_some());
    }

    /// The ping is answered. Returns what was written before it; since then the stream has not grown by four thousand
    /// million messages.
    pub(super) fn take_note(&mut self, last: u64) -> Option<u64> {
        if !std::mem::take(&mut self.is_known) {
            return None;
        }
        let written = last & !u64::from(u32::MAX) | u64::from(self.written);
        if written > last { written.checked_sub(1 << 32) } else { Some(written) }
    }
}

impl Work {
    pub(in crate::reactor) fn is_empty(&self) -> bool {
        let bytes = self.waiting_bytes + self.working_bytes + self.counted;
        let nothing_waits = self.waiting.is_empty() && self.held.is_empty() && bytes == 0;
        let is_whole = self.half_since.is_none() && !self.is_said;
        nothing_waits && is_whole && self.goodbye.is_none()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING || self.waiting_bytes >= MAX_WAITING_BYTES
    }

    /// What waits, for a task.
    pub(super) fn take(&mut self) -> Vec<Said> {
        self.working_bytes = std::mem::take(&mut self.waiting_bytes);
        std::mem::take(&mut self.waiting).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_waits_is_small() {
        assert!(size_of::<Guest>() <= 16, "{}", size_of::<Guest>());
        assert!(Work::default().is_empty());
    }

    #[test]
    fn half_a_number_says_where_a_client_is() {
        let sessions = crate::cbor::Sessions::new();
        let (session, _) = sessions.begin(uuid::Uuid::nil(), 1, 0);
        let mut guest = Guest::new(sessions.pack(&session), Tenths(0));
        assert_eq!(guest.take_note(9), None);
        let turn = 1 << 32;
        for (written, last) in
            [(0, 0), (5, 5), (5, 9), (turn - 1, turn + 3), (3 * turn, 3 * turn), (turn + 7, 2 * turn + 6)]
        {
            guest.note(Some(written));
            assert_eq!((guest.take_note(last), guest.take_note(last)), (Some(written), None));
        }
        // The stream began anew.
        guest.note(Some(9));
        assert_eq!(guest.take_note(3), None);
    }

    #[test]
    fn pings_are_counted() {
        let mut pings = Pings::default();
        pings.one_less();
        assert!(!pings.are_out() && pings.is_answered());
        pings.one_more();
        pings.one_more();
        assert!(pings.are_out() && !pings.is_answered());
        pings.one_less();
        assert!(pings.are_out() && pings.is_answered());
        pings.one_less();
        assert!(!pings.are_out());
        (0..1_000).for_each(|_| pings.one_more());
        assert!(pings.are_out() && !pings.is_answered());
    }

    #[test]
    fn moments_begin_anew() {
        assert_eq!(Tenths(5).since(Tenths(u16::MAX - 4)), 10);
    }
}
