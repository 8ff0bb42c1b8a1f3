//! Which reactors have listeners of what many listen to. What is an account's own is with the reactor of the account.

use super::Want;
use crate::{dialects::mastodon::channel::Channel, metrics};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc::UnboundedSender;

/// A bit for each reactor.
#[derive(Debug, Default)]
pub struct Routes(Mutex<HashMap<Channel, u64>>);

impl Routes {
    /// The first reactor that has somebody wants it subscribed. What is wanted is said before anybody else may say more.
    pub(super) fn add(&self, channel: &Channel, reactor: usize, wants: &UnboundedSender<Want>) {
        let mut routes = self.lock();
        let bits = routes.entry(channel.clone()).or_default();
        if *bits == 0 {
            metrics::redis_subscriptions(1.0);
            let _ = wants.send(Want::Subscribe(channel.clone()));
        }
        *bits |= 1 << reactor;
    }

    pub(super) fn remove(&self, channel: &Channel, reactor: usize, wants: &UnboundedSender<Want>) {
        let mut routes = self.lock();
        let Some(bits) = routes.get_mut(channel) else { return };
        *bits &= !(1 << reactor);
        if *bits == 0 {
            routes.remove(channel);
            metrics::redis_subscriptions(-1.0);
            let _ = wants.send(Want::Unsubscribe(channel.clone()));
        }
    }

    /// The reactors, by their numbers.
    pub(super) fn of(&self, channel: &Channel) -> impl Iterator<Item = usize> + use<> {
        let bits = self.lock().get(channel).copied().unwrap_or(0);
        (0..64).filter(move |reactor| bits & (1 << reactor) != 0)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Channel, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
