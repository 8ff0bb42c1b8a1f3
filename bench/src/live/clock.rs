//! A clock that all processes of this machine share: what one stamps, another can subtract.

use nix::time::{ClockId, clock_gettime};

/// Since some moment before this machine's processes began.
pub(super) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux always has this clock");
    let part = |value: i64| u64::try_from(value).expect("this clock is never negative");
    part(now.tv_sec()) * 1_000_000 + part(now.tv_nsec()) / 1_000
}
