//! What is subscribed is what somebody listens to, whatever they do.

use super::*;
use crate::dialects::mastodon::channel::{ListId, Origin};
use proptest::prelude::*;
use std::collections::BTreeSet;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

#[test]
fn a_connection_that_waits_is_small() {
    assert!(size_of::<Option<Record>>() <= 56, "{}", size_of::<Option<Record>>());
}

#[derive(Debug, Clone)]
enum Step {
    Enter(i64, i64),
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..4_i64, 0..2_i64).prop_map(|(account, token)| Step::Enter(account, account * 10 + token)),
        (0..8_usize, 0..8_usize).prop_map(|(who, what)| Step::Subscribe(who, what)),
        (0..8_usize, 0..8_usize).prop_map(|(who, what)| Step::Unsubscribe(who, what)),
        (0..8_usize).prop_map(Step::Remove),
    ]
}

fn streams() -> [Stream; 8] {
    let hashtag = |tag: &str, label: &str| {
        let label = Label::of("hashtag", label);
        Stream::Hashtag { tag: tag.into(), local: false, label }
    };
    [
        Stream::User,
        Stream::UserNotification,
        Stream::Direct,
        Stream::Public { origin: Origin::All, media: false },
        Stream::Public { origin: Origin::Local, media: true },
        Stream::List { list: ListId(1), label: Label::of("list", "1") },
        hashtag("a", "\"a\""),
        hashtag("a", "\"A\""),
    ]
}

/// What is subscribed, after all that was wanted.
fn settle(wants: &mut UnboundedReceiver<Want>, subscribed: &mut BTreeSet<String>) {
    while let Ok(want) = wants.try_recv() {
        match want {
            Want::Subscribe(channel) => assert!(subscribed.insert(channel.to_string()), "{channel}"),
            Want::Unsubscribe(channel) => assert!(subscribed.remove(&channel.to_string()), "{channel}"),
            Want::Standing(_) => {}
        }
    }
}

fn expected(model: &[(RecordId, i64, i64, bool, Vec<Stream>)]) -> BTreeSet<String> {
    let mut expected = BTreeSet::new();
    for (_, account, token, may_notifications, streams) in model {
        let account = AccountId(*account);
        expected.insert(Channel::System(account).to_string());
        expected.insert(Channel::AccessToken(TokenId(*token)).to_string());
        let scopes = Scopes { statuses: true, notifications: *may_notifications };
        for stream in streams {
            expected.extend(stream.channels(account, scopes).iter().map(ToString::to_string));
        }
    }
    expected
}

proptest! {
    #[test]
    fn a_channel_is_subscribed_while_somebody_listens(steps in prop::collection::vec(step(), 0..80)) {
        let (wants, mut wanted) = unbounded_channel();
        let mut listeners = Listeners::new(wants, Arc::default(), 0);
        let mut model: Vec<(RecordId, i64, i64, bool, Vec<Stream>)> = Vec::new();
        let mut subscribed = BTreeSet::new();
        for step in steps {
            match step {
                Step::Enter(account, token) => {
                    let scopes = Scopes { statuses: true, notifications: token % 2 == 0 };
                    let record =
                        Record::new(AccountId(account), TokenId(token), scopes, Form::Socket, 7);
                    model.push((listeners.enter(record), account, token, scopes.notifications, vec![]));
                }
                Step::Subscribe(who, what) => {
                    let Some((id, .., has)) = model.get_mut(who) else { continue };
                    let stream = streams()[what].clone();
                    let is_new = !has.iter().any(|had| had.is_same(&stream));
                    prop_assert_eq!(listeners.subscribe(*id, &stream, None), is_new);
                    if is_new {
                        has.push(stream);
                    }
                }
                Step::Unsubscribe(who, what) => {
                    let Some((id, .., has)) = model.get_mut(who) else { continue };
                    let stream = &streams()[what];
                    let had = has.iter().position(|had| had.is_same(stream));
                    prop_assert_eq!(listeners.unsubscribe(*id, stream), had.is_some());
                    had.map(|at| has.remove(at));
                }
                Step::Remove(who) => {
                    if who < model.len() {
                        listeners.remove(model.remove(who).0);
                    }
                }
            }
            settle(&mut wanted, &mut subscribed);
            prop_assert_eq!(&subscribed, &expected(&model));
            let all: BTreeSet<String> = listeners.channels().iter().map(ToString::to_string).collect();
            prop_assert_eq!(&subscribed, &all);
            for (id, .., has) in &model {
                for stream in has.iter().filter(|stream| Record::bit(stream).is_none()) {
                    let channel = &stream.channels(AccountId(0), Scopes::parse("read"))[0];
                    let (_, member) = listeners.member(*id, channel).unwrap();
                    prop_assert_eq!(member.record, *id);
                }
            }
        }
    }
}
