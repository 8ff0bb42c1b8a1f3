//! The streams that clients name, and what each is made of.

use super::{
    channel::{AccountId, Channel, ListId, Origin},
    scopes::Scopes,
};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stream {
    User,
    UserNotification,
    Direct,
    List {
        list: ListId,
        label: Label,
    },
    Public {
        origin: Origin,
        media: bool,
    },
    Hashtag {
        /// As Mastodon spells it.
        tag: Arc<str>,
        local: bool,
        label: Label,
    },
}

/// The stream's name in each of its messages, as a JSON array; tag and list as the client wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Label {
    Fixed(&'static str),
    Made(Arc<str>),
}

impl Label {
    /// `argument` is JSON.
    pub fn of(name: &str, argument: &str) -> Self {
        Self::Made(format!(r#"["{name}",{argument}]"#).into())
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl Stream {
    /// In metrics, and to clients.
    pub fn name(&self) -> &'static str {
        match self {
            Self::User => "user",
            Self::UserNotification => "user:notification",
            Self::Direct => "direct",
            Self::List { .. } => "list",
            Self::Public { origin: Origin::All, media: false } => "public",
            Self::Public { origin: Origin::All, media: true } => "public:media",
            Self::Public { origin: Origin::Local, media: false } => "public:local",
            Self::Public { origin: Origin::Local, media: true } => "public:local:media",
            Self::Public { origin: Origin::Remote, media: false } => "public:remote",
            Self::Public { origin: Origin::Remote, media: true } => "public:remote:media",
            Self::Hashtag { local: false, .. } => "hashtag",
            Self::Hashtag { local: true, .. } => "hashtag:local",
        }
    }

    pub fn label(&self) -> Label {
        match self {
            Self::List { label, .. } | Self::Hashtag { label, .. } => label.clone(),
            Self::User => Label::Fixed(r#"["user"]"#),
            Self::UserNotification => Label::Fixed(r#"["user:notification"]"#),
            Self::Direct => Label::Fixed(r#"["direct"]"#),
            Self::Public { origin: Origin::All, media: false } => Label::Fixed(r#"["public"]"#),
            Self::Public { origin: Origin::All, media: true } => Label::Fixed(r#"["public:media"]"#),
            Self::Public { origin: Origin::Local, media: false } => Label::Fixed(r#"["public:local"]"#),
            Self::Public { origin: Origin::Local, media: true } => Label::Fixed(r#"["public:local:media"]"#),
            Self::Public { origin: Origin::Remote, media: false } => Label::Fixed(r#"["public:remote"]"#),
            Self::Public { origin: Origin::Remote, media: true } => {
                Label::Fixed(r#"["public:remote:media"]"#)
            }
        }
    }

    /// What it is made of, for this account. The first is what tells subscriptions of one connection apart.
    pub fn channels(&self, account: AccountId, scopes: Scopes) -> SmallVec<[Channel; 2]> {
        match self {
            Self::User if scopes.notifications => {
                smallvec![Channel::Home(account), Channel::Notifications(account)]
            }
            Self::User => smallvec![Channel::Home(account)],
            Self::UserNotification => smallvec![Channel::Notifications(account)],
            Self::Direct => smallvec![Channel::Direct(account)],
            Self::List { list, .. } => smallvec![Channel::List(*list)],
            Self::Public { origin, media } => smallvec![Channel::Public { origin: *origin, media: *media }],
            Self::Hashtag { tag, local, .. } => {
                smallvec![Channel::Hashtag { tag: Arc::clone(tag), local: *local }]
            }
        }
    }

    /// Whether it is the same subscription: a tag in another spelling is.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List { list: a, .. }, Self::List { list: b, .. }) => a == b,
            (Self::Hashtag { tag: a, local: c, .. }, Self::Hashtag { tag: b, local: d, .. }) => {
                a == b && c == d
            }
            _ => self == other,
        }
    }

    /// Whether each viewer gets what is right for them.
    pub fn is_filtered(&self) -> bool {
        matches!(self, Self::Public { .. } | Self::Hashtag { .. })
    }
}
