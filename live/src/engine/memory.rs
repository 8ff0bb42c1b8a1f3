//! Gives memory back to the system after a wave of connections: what a request took while it was one lies in pieces between
//! what stays, and the allocator keeps it.

use std::time::{Duration, Instant};

/// Connections that came or went since memory was given back last: a hundred requests at once leave megabytes in pieces,
/// also where they are the last of a wave that paused.
const WAVE: usize = 128;
/// The wave is over when the number changes by less than this,
const STILL: usize = 64;
/// for so long.
const STILL_FOR: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Trim {
    trimmed_at: usize,
    last: usize,
    since: Instant,
}

impl Trim {
    pub fn new(now: Instant) -> Self {
        Self { trimmed_at: 0, last: 0, since: now }
    }

    /// From time to time, with the number of connections.
    pub fn look(&mut self, connections: usize, now: Instant) {
        if self.is_time(connections, now) {
            give_back();
        }
    }

    fn is_time(&mut self, connections: usize, now: Instant) -> bool {
        if connections.abs_diff(self.last) > STILL {
            (self.last, self.since) = (connections, now);
        }
        let over = now.duration_since(self.since) >= STILL_FOR;
        let wave = connections.abs_diff(self.trimmed_at) >= WAVE;
        if over && wave {
            self.trimmed_at = connections;
        }
        over && wave
    }
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "no library wraps it")]
fn give_back() {
    // SAFETY: it takes a number and no pointers, locks what it works on, and frees only what nobody has.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_after_each_wave() {
        let start = Instant::now();
        let mut trim = Trim::new(start);
        let mut times = 0;
        let counts = [0, 5_000, 9_000, 9_010, 9_020, 9_030, 9_040, 9_200, 9_200, 9_200, 100, 100, 100, 100];
        for (second, connections) in (0..).zip(counts) {
            times += usize::from(trim.is_time(connections, start + Duration::from_secs(second)));
        }
        assert_eq!(times, 3);
    }
}
