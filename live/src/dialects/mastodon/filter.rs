//! What a viewer is not to see of public and hashtag streams, and what is said about the rest.

use super::{
    channel::AccountId,
    keywords::{self, Filter},
    post::{Post, Status},
};
use std::sync::Arc;

/// What an account has blocked, muted and filtered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Those whom the viewer blocks or mutes: nothing by them, and nothing that mentions them. In order.
    pub hidden: Box<[AccountId]>,
    /// Those who block the viewer: nothing by them. In order.
    pub hidden_from: Box<[AccountId]>,
    /// Nothing by those who are there. In order.
    pub domains: Box<[Box<str>]>,
    pub filters: Arc<[Filter]>,
}

/// What the operator shows to nobody but who may see all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closed {
    pub local: bool,
    pub remote: bool,
}

/// Languages, by their codes.
pub type Chosen = Box<[Box<str>]>;
/// Those that a viewer has chosen, if any.
pub type Languages = Option<Arc<Chosen>>;

/// What is done about a status for one viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Hide,
    /// As all others see it.
    Show,
    /// With these matches of filters, in JSON.
    Annotate(String),
}

/// Whether they are among what this viewer is shown, in the order in which Mastodon asks.
pub fn decide(
    rules: &Rules,
    closed: Closed,
    languages: Option<&[Box<str>]>,
    post: &Post,
    now_ms: i64,
) -> Decision {
    let Some(status) = post.status() else { return Decision::Show };
    let is_closed = if status.is_local { closed.local } else { closed.remote };
    if is_closed || !is_in(languages, status) || is_hidden(rules, status) {
        return Decision::Hide;
    }
    if rules.filters.is_empty() || status.is_filtered {
        return Decision::Show;
    }
    let matches = post.text().and_then(|text| keywords::matches(&rules.filters, text, now_ms));
    matches.map_or(Decision::Show, Decision::Annotate)
}

fn is_in(languages: Option<&[Box<str>]>, status: &Status) -> bool {
    languages.is_none_or(|chosen| status.language.as_ref().is_some_and(|language| chosen.contains(language)))
}

fn is_hidden(rules: &Rules, status: &Status) -> bool {
    let hides = |account: &AccountId| rules.hidden.binary_search(account).is_ok();
    hides(&status.author)
        || status.mentions.iter().any(hides)
        || rules.hidden_from.binary_search(&status.author).is_ok()
        || status.domain.as_ref().is_some_and(|domain| rules.domains.binary_search(domain).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::mastodon::keywords::Description;

    fn post(account: &str, rest: &str) -> Post {
        let message = format!(r#"{{"event":"update","payload":{{"account":{account}{rest}}}}}"#);
        Post::parse(message.as_bytes(), true).unwrap()
    }

    const LOCAL: &str = r#"{"id":"1","username":"ann","acct":"ann"}"#;
    const REMOTE: &str = r#"{"id":"2","username":"bob","acct":"bob@far.example"}"#;

    #[test]
    fn what_is_hidden_is_hidden_for_one_reason_each() {
        let ids = |ids: &[i64]| ids.iter().map(|id| AccountId(*id)).collect::<Box<[_]>>();
        let open = Closed::default();
        let none = Rules::default;
        let en: Box<[Box<str>]> = ["en".into()].into();
        let mentions = r#","mentions":[{"id":"5"}],"language":"en""#;
        let cases = [
            (none(), open, None, LOCAL, "", true),
            (Rules { hidden: ids(&[0, 1]), ..none() }, open, None, LOCAL, "", false),
            (Rules { hidden: ids(&[5]), ..none() }, open, None, LOCAL, mentions, false),
            (Rules { hidden_from: ids(&[1]), ..none() }, open, None, LOCAL, "", false),
            (Rules { hidden_from: ids(&[5]), ..none() }, open, None, LOCAL, mentions, true),
            (Rules { domains: ["far.example".into()].into(), ..none() }, open, None, REMOTE, "", false),
            (Rules { domains: ["far.example".into()].into(), ..none() }, open, None, LOCAL, "", true),
            (none(), Closed { local: true, remote: false }, None, LOCAL, "", false),
            (none(), Closed { local: true, remote: false }, None, REMOTE, "", true),
            (none(), Closed { local: false, remote: true }, None, REMOTE, "", false),
            (none(), open, Some(&en), LOCAL, mentions, true),
            (none(), open, Some(&en), LOCAL, r#","language":"de""#, false),
            (none(), open, Some(&en), LOCAL, r#","language":null"#, false),
            (none(), open, Some(&en), LOCAL, "", false),
        ];
        for (rules, closed, languages, account, rest, shown) in cases {
            let post = post(account, rest);
            let decision = decide(&rules, closed, languages.map(|languages| &languages[..]), &post, 0);
            let expected = if shown { Decision::Show } else { Decision::Hide };
            assert_eq!(decision, expected, "{rules:?} {closed:?} {languages:?} {account} {rest}");
        }
    }

    #[test]
    fn keywords_annotate_and_never_hide() {
        let description =
            Description { id: "7", title: "t", context: &[], expires_at: None, filter_action: "hide" };
        let filters = [Filter::new(&description, None, [("cat", false)])].into();
        let rules = Rules { filters, ..Rules::default() };
        let decide = |rest: &str| decide(&rules, Closed::default(), None, &post(LOCAL, rest), 0);
        assert!(matches!(decide(r#","content":"<p>a cat</p>""#), Decision::Annotate(_)));
        assert_eq!(decide(r#","content":"<p>a dog</p>""#), Decision::Show);
        assert_eq!(decide(r#","content":"<p>a cat</p>","filtered":[]"#), Decision::Show);
    }
}
