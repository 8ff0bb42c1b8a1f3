//! Connections that are not logged in: how many may wait, and who gives way when there are too many.
//!
//! A login takes two round trips, so whoever has waited longest is the least likely to be a builder on its way in. When
//! the lobby is full the one that leaves is the oldest of the address that has the most there: a stranger who opens
//! connections and says nothing drives out his own, and builders behind one address with him lose only those that dawdle.
//! Addresses are a guess (a load balancer's word, many builders behind one), so nobody is refused for one.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;

/// Some hundred bytes each, and more logins under way than a node sees when all its builders come back at once.
const MAX_WAITING: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Lobby(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By their age, the oldest first.
    waiting: BTreeMap<u64, Guest>,
}

#[derive(Debug)]
struct Guest {
    from: IpAddr,
    leave: CancellationToken,
}

/// A place in the lobby, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    lobby: Arc<Lobby>,
    number: u64,
    leave: CancellationToken,
}

impl Lobby {
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Place {
        let leave = CancellationToken::new();
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, Guest { from, leave: leave.clone() });
        if state.waiting.len() > MAX_WAITING {
            state.make_room();
        }
        drop(state);
        Place { lobby: self.clone(), number, leave }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn make_room(&mut self) {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for guest in self.waiting.values() {
            *counts.entry(guest.from).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or_default();
        let oldest = self.waiting.iter().find(|(_, guest)| counts.get(&guest.from) == Some(&most));
        if let Some(number) = oldest.map(|(number, _)| *number)
            && let Some(guest) = self.waiting.remove(&number)
        {
            guest.leave.cancel();
        }
    }
}

impl Place {
    /// Others came and this one has waited longest.
    pub(super) async fn wanted(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lobby.state().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_oldest_of_the_address_with_the_most_gives_way() {
        let lobby = Arc::<Lobby>::default();
        let neighbour = lobby.enter(ip(1));
        let mut crowd: Vec<_> = (0..MAX_WAITING).map(|_| lobby.enter(ip(2))).collect();
        assert!(crowd[0].wanted().now_or_never().is_some());
        assert!(crowd[1].wanted().now_or_never().is_none() && neighbour.wanted().now_or_never().is_none());
        crowd.push(lobby.enter(ip(2)));
        assert!(crowd[1].wanted().now_or_never().is_some());
        assert_eq!(lobby.state().waiting.len(), MAX_WAITING);
        drop((crowd, neighbour));
        assert_eq!(lobby.state().waiting.len(), 0);
    }
}
