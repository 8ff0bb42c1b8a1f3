//! Wakes a thread that waits for sockets, once for whatever comes until it looks.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

#[derive(Debug)]
pub struct Wake {
    event: EventFd,
    woken: AtomicBool,
}

impl Wake {
    pub fn new() -> nix::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, woken: AtomicBool::new(false) })
    }

    /// What it is woken for must be there before.
    pub fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // It fails only where the counter is full, and then it is readable.
            let _ = self.event.write(1);
        }
    }

    /// The thread is awake; nobody else wakes it before it is armed again.
    pub fn clear(&self) {
        // It fails only where nothing is there.
        let _ = self.event.read();
    }

    /// Before looking at what there is: what comes from now on wakes again.
    pub fn rearm(&self) {
        // What was there before the last wake is seen after this.
        self.woken.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
