//! bcrypt takes a fifth of a second of a processor, on purpose: never on a thread that events wait for, and on half of the
//! processors at most.

use super::error::Error;
use crate::dialects::event_api::request::MAX_PASSWORD_BYTES;
use std::sync::{Arc, LazyLock};
use tokio::{sync::Semaphore, task::spawn_blocking};

const COST: u32 = 12;
/// Who waits for a processor: at five a second each, half a minute on a small machine.
const MAX_WAITING: usize = 128;

/// Of a password that nobody has: a user that there is not takes as long as one that there is.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| bcrypt::hash("", COST).ok());

#[derive(Debug)]
pub(super) struct Passwords {
    processors: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from) / 2;
        // The first login would take twice as long.
        std::thread::spawn(|| LazyLock::force(&NOBODY).is_some());
        Self {
            processors: Arc::new(Semaphore::new(processors.max(1))),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    pub(super) async fn hash(&self, password: String) -> Result<String, Error> {
        self.work(move || bcrypt::hash(password, COST).ok())
            .await?
            .ok_or(Error::Away("no password can be hashed"))
    }

    /// Whether the password is that of this hash; without one it takes as long.
    pub(super) async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Error> {
        self.work(move || {
            // bcrypt would leave out the rest.
            let fits = password.len() <= MAX_PASSWORD_BYTES;
            let known = hash.is_some();
            let hash = hash.as_deref().or(NOBODY.as_deref()).unwrap_or_default();
            let same = bcrypt::verify(password, hash).unwrap_or(false);
            same && known && fits
        })
        .await
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let _waiting =
            self.waiting.try_acquire().map_err(|_| Error::Away("too many sign-ups and logins at once"))?;
        let place = Arc::clone(&self.processors).acquire_owned().await;
        // Whoever goes away does not free the processor: the place goes with the work.
        let done = spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.map_err(|_| Error::Away("passwords cannot be looked at"))
    }
}
