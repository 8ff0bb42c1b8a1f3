//! A connection on which something is under way: unless it went well, nobody else gets it.

use super::Connection;
use std::ops::{Deref, DerefMut};

/// Closes its connection when it is dropped, which is what becomes of work that is given up half-way.
#[derive(Debug)]
pub struct Held(Option<Connection>);

impl Held {
    pub fn of(conn: Connection) -> Self {
        Self(Some(conn))
    }

    /// To its pool.
    pub fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Held {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("it is there until it is given back")
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0.as_mut().expect("it is there until it is given back")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            drop(Connection::take(conn));
        }
    }
}
