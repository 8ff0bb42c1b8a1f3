//! What came lately, for streams of events that come back with the id of the last event they had. Pure.

use crate::dialects::mastodon::{channel::Channel, post::Post};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// What the messages that are kept may take, on each reactor.
const MOST_BYTES: usize = 8 << 20;

#[derive(Default)]
pub(super) struct Log {
    entries: VecDeque<(Instant, Channel, Arc<Post>)>,
    bytes: usize,
}

impl Log {
    pub(super) fn push(&mut self, channel: Channel, post: Arc<Post>, now: Instant) {
        self.bytes += post.cost();
        self.entries.push_back((now, channel, post));
    }

    /// What is older than that, or too much.
    pub(super) fn forget(&mut self, now: Instant, kept: Duration) {
        while let Some((since, _, post)) = self.entries.front() {
            if self.bytes <= MOST_BYTES && now.duration_since(*since) < kept {
                return;
            }
            self.bytes -= post.cost();
            self.entries.pop_front();
        }
        // Gives memory back.
        self.entries = VecDeque::new();
    }

    /// What came on these channels after the event with this id, the first one where there are several. Nothing if it is not
    /// known here.
    pub(super) fn after<'a>(
        &'a self,
        id: &'a str,
        channels: &'a [Channel],
    ) -> impl Iterator<Item = (&'a Channel, &'a Arc<Post>)> {
        let of_these = self.entries.iter().filter(|(_, channel, _)| channels.contains(channel));
        of_these
            .skip_while(move |(.., post)| post.id() != id)
            .skip(1)
            .map(|(_, channel, post)| (channel, post))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::mastodon::channel::AccountId;

    fn post(text: &str) -> Arc<Post> {
        let message = format!(r#"{{"event":"delete","payload":"{text}"}}"#);
        Arc::new(Post::parse(message.as_bytes(), false).unwrap())
    }

    #[test]
    fn who_comes_back_gets_what_came_since_on_its_channels() {
        let (mut log, now) = (Log::default(), Instant::now());
        let [home, other] = [1, 2].map(|account| Channel::Home(AccountId(account)));
        for (channel, text) in [(&home, "a"), (&other, "b"), (&home, "c"), (&home, "a"), (&other, "d")] {
            log.push(channel.clone(), post(text), now);
        }
        let after = |log: &Log, text: &str, channels: &[Channel]| {
            let id = post(text).id().to_owned();
            log.after(&id, channels).map(|(_, post)| post.id().to_owned()).collect::<Vec<_>>()
        };
        let ids = |texts: &[&str]| texts.iter().map(|text| post(text).id().to_owned()).collect::<Vec<_>>();
        assert_eq!(after(&log, "a", std::slice::from_ref(&home)), ids(&["c", "a"]));
        assert_eq!(after(&log, "b", &[home.clone(), other.clone()]), ids(&["c", "a", "d"]));
        assert_eq!(after(&log, "b", std::slice::from_ref(&home)), ids(&[]));
        assert_eq!(after(&log, "z", std::slice::from_ref(&home)), ids(&[]));
        log.forget(now + Duration::from_secs(9), Duration::from_secs(9));
        assert_eq!((log.bytes, after(&log, "a", &[home])), (0, ids(&[])));
    }
}
