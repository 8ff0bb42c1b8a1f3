//! The channels of a topic: few, mostly, and in thousands of topics; many, at times, in one.

use super::ChannelId;
use smallvec::SmallVec;

/// In order.
#[derive(Debug, Default)]
pub(super) struct Ids(pub(super) SmallVec<[ChannelId; 4]>);

impl Ids {
    pub(super) fn contains(&self, id: ChannelId) -> bool {
        self.0.binary_search(&id).is_ok()
    }

    pub(super) fn insert(&mut self, id: ChannelId) {
        if let Err(place) = self.0.binary_search(&id) {
            self.0.insert(place, id);
        }
    }

    pub(super) fn remove(&mut self, id: ChannelId) {
        if let Ok(place) = self.0.binary_search(&id) {
            self.0.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_there_once_whatever_the_order() {
        let mut ids = Ids::default();
        for id in [3, 9, 1, 9, 7, 5, 2] {
            ids.insert(id);
        }
        ids.remove(7);
        ids.remove(7);
        assert_eq!(ids.0.as_slice(), [1, 2, 3, 5, 9]);
        assert!(ids.contains(5) && !ids.contains(7));
    }
}
