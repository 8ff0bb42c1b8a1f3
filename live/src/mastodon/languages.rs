//! The languages that viewers have chosen: the same few lists again and again, each kept once.

use crate::dialects::mastodon::filter::Chosen;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// Lists that nobody has any more are looked for when there are so many more than there were.
const MANY: usize = 256;

#[derive(Debug, Default)]
pub(super) struct AllLanguages(Mutex<HashMap<Chosen, Weak<Chosen>>>);

impl AllLanguages {
    pub(super) fn get(&self, mut chosen: Vec<String>) -> Arc<Chosen> {
        chosen.sort_unstable();
        let chosen: Chosen = chosen.into_iter().map(Into::into).collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&chosen).and_then(Weak::upgrade) {
            return known;
        }
        if all.len() >= MANY && all.len().is_power_of_two() {
            all.retain(|_, known| known.strong_count() > 0);
        }
        let new = Arc::new(chosen.clone());
        all.insert(chosen, Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_list_is_kept_once_and_goes_with_the_last_who_has_it() {
        let all = AllLanguages::default();
        let get = |languages: &[&str]| all.get(languages.iter().map(|&language| language.into()).collect());
        let (a, b, c) = (get(&["en", "de"]), get(&["de", "en"]), get(&["en"]));
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
        for number in 0..4 * MANY {
            get(&[&number.to_string()]);
        }
        assert!(all.0.lock().unwrap().len() <= 2 * MANY);
        assert!(Arc::ptr_eq(&a, &get(&["en", "de"])));
    }
}
