//! The channels of Redis that Mastodon publishes to.

use std::{fmt, sync::Arc};

/// An account on this Mastodon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(pub i64);

/// An access token, by its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId(pub i64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListId(pub i64);

/// Whose statuses a public stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    All,
    Local,
    Remote,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Channel {
    Home(AccountId),
    Notifications(AccountId),
    Direct(AccountId),
    List(ListId),
    Public {
        origin: Origin,
        media: bool,
    },
    /// The tag as Mastodon spells it.
    Hashtag {
        tag: Arc<str>,
        local: bool,
    },
    /// Says that the token is not good any more.
    AccessToken(TokenId),
    /// Says so of the account, or that its filters have changed.
    System(AccountId),
}

const PREFIX: &str = "timeline:";
const HASHTAG: &str = "hashtag:";
const LOCAL: &str = ":local";

impl Channel {
    /// None for a name that is no channel of these.
    pub fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        if let Some(tag) = rest.strip_prefix(HASHTAG) {
            let (tag, local) = tag.strip_suffix(LOCAL).map_or((tag, false), |tag| (tag, true));
            return Some(Self::Hashtag { tag: tag.into(), local });
        }
        let public = |origin, media| Self::Public { origin, media };
        match rest {
            "public" => return Some(public(Origin::All, false)),
            "public:media" => return Some(public(Origin::All, true)),
            "public:local" => return Some(public(Origin::Local, false)),
            "public:local:media" => return Some(public(Origin::Local, true)),
            "public:remote" => return Some(public(Origin::Remote, false)),
            "public:remote:media" => return Some(public(Origin::Remote, true)),
            _ => {}
        }
        match rest.split_once(':') {
            None => Some(Self::Home(AccountId(rest.parse().ok()?))),
            Some(("direct", id)) => Some(Self::Direct(AccountId(id.parse().ok()?))),
            Some(("list", id)) => Some(Self::List(ListId(id.parse().ok()?))),
            Some(("access_token", id)) => Some(Self::AccessToken(TokenId(id.parse().ok()?))),
            Some(("system", id)) => Some(Self::System(AccountId(id.parse().ok()?))),
            Some((id, "notifications")) => Some(Self::Notifications(AccountId(id.parse().ok()?))),
            Some(_) => None,
        }
    }

    /// The account whose own it is. A list is somebody's too, but its name does not say whose.
    pub fn account(&self) -> Option<AccountId> {
        match self {
            Self::Home(account)
            | Self::Notifications(account)
            | Self::Direct(account)
            | Self::System(account) => Some(*account),
            Self::List(_) | Self::Public { .. } | Self::Hashtag { .. } | Self::AccessToken(_) => None,
        }
    }

    /// Whether Mastodon publishes to it only while a key says that somebody listens.
    pub fn has_key(&self) -> bool {
        !matches!(self, Self::AccessToken(_) | Self::System(_))
    }

    /// Whether what comes on it is filtered for each viewer.
    pub fn is_filtered(&self) -> bool {
        matches!(self, Self::Public { .. } | Self::Hashtag { .. })
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Self::Home(account) => write!(f, "{}", account.0),
            Self::Notifications(account) => write!(f, "{}:notifications", account.0),
            Self::Direct(account) => write!(f, "direct:{}", account.0),
            Self::List(list) => write!(f, "list:{}", list.0),
            Self::Public { origin, media } => {
                f.write_str(match origin {
                    Origin::All => "public",
                    Origin::Local => "public:local",
                    Origin::Remote => "public:remote",
                })?;
                f.write_str(if *media { ":media" } else { "" })
            }
            Self::Hashtag { tag, local } => {
                write!(f, "{HASHTAG}{tag}{}", if *local { LOCAL } else { "" })
            }
            Self::AccessToken(token) => write!(f, "access_token:{}", token.0),
            Self::System(account) => write!(f, "system:{}", account.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_mastodons() {
        for name in [
            "timeline:7",
            "timeline:7:notifications",
            "timeline:direct:7",
            "timeline:list:7",
            "timeline:public",
            "timeline:public:media",
            "timeline:public:local",
            "timeline:public:local:media",
            "timeline:public:remote",
            "timeline:public:remote:media",
            "timeline:hashtag:cafe",
            "timeline:hashtag:cafe:local",
            "timeline:hashtag:ド・レ",
            "timeline:access_token:7",
            "timeline:system:7",
        ] {
            assert_eq!(Channel::parse(name).unwrap().to_string(), name);
        }
        for name in ["", "timeline", "timeline:", "timeline:a", "timeline:7:x", "timeline:public:x", "x:7"] {
            assert_eq!(Channel::parse(name), None, "{name}");
        }
    }
}
