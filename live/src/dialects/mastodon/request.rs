//! What clients ask for: a stream in the path of a request, or in a message over WebSocket.

use super::{
    channel::{ListId, Origin},
    hashtag,
    scopes::Scopes,
    stream::{Label, Stream},
};
use serde_json::Value;

/// Why a stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("Unknown channel requested")]
    UnknownChannel,
    #[error("Unknown stream type")]
    UnknownStream,
    #[error("Missing tag name parameter")]
    MissingTag,
    #[error("Missing list name parameter")]
    MissingList,
    #[error("Missing access token")]
    MissingToken,
    #[error("Invalid access token")]
    InvalidToken,
    #[error("Access token does not have the required scopes")]
    Scopes,
    #[error("Not authorized to stream this list")]
    List,
    #[error("Too many streams on one connection")]
    TooManyStreams,
    #[error("Too many connections")]
    TooManyConnections,
    #[error("GET follows a stream")]
    Method,
    #[error("The service is not available at the moment")]
    Away,
    #[error("An unexpected error occurred")]
    Unexpected,
}

impl Error {
    pub fn status(self) -> u16 {
        match self {
            Self::UnknownChannel | Self::UnknownStream | Self::MissingTag | Self::MissingList => 400,
            Self::MissingToken | Self::InvalidToken | Self::Scopes | Self::List => 401,
            Self::Method => 405,
            Self::TooManyStreams | Self::TooManyConnections => 429,
            Self::Unexpected => 500,
            Self::Away => 503,
        }
    }
}

/// A stream with what belongs to it, before anybody looked at it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Named {
    pub stream: Option<String>,
    /// JSON, as the client sent them.
    pub tag: Option<Value>,
    pub list: Option<Value>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Subscribe(Named),
    Unsubscribe(Named),
}

impl Command {
    /// A message over WebSocket; none for what is ignored without a word.
    pub fn parse(text: &str) -> Option<Self> {
        let Value::Object(mut object) = serde_json::from_str(text).ok()? else { return None };
        let mut take = |key: &str| object.remove(key).and_then(first);
        let kind = take("type")?;
        let stream = take("stream").and_then(|stream| match stream {
            Value::String(stream) => Some(stream),
            _ => None,
        });
        let named = Named { stream, tag: take("tag"), list: take("list") };
        match kind.as_str()? {
            "subscribe" => Some(Self::Subscribe(named)),
            "unsubscribe" => Some(Self::Unsubscribe(named)),
            _ => None,
        }
    }
}

/// Longer than any tag that Mastodon takes; what is longer stands for nothing, and takes nobody's time.
const MAX_TEXT_BYTES: usize = 1_024;

/// Of an array the first element counts. What is no text or number, or too much of it, is nothing.
fn first(value: Value) -> Option<Value> {
    match value {
        Value::Array(values) => values.into_iter().next(),
        value => Some(value),
    }
    .filter(is_short)
}

fn is_short(value: &Value) -> bool {
    match value {
        Value::String(text) => text.len() <= MAX_TEXT_BYTES,
        Value::Array(_) | Value::Object(_) => false,
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

impl Named {
    /// Of the query of a request.
    pub fn of_query(query: &[(String, String)]) -> Self {
        let text = |key: &str| Some(query.iter().find(|(name, _)| name == key)?.1.clone());
        let value = |key: &str| text(key).map(Value::String).filter(is_short);
        Self {
            stream: text("stream").filter(|stream| !stream.is_empty()),
            tag: value("tag"),
            list: value("list"),
        }
    }

    /// The stream, if a token with these scopes may have it. Whose a list is, is looked at later.
    pub fn allowed(&self, scopes: Scopes) -> Result<Stream, Error> {
        let kind = self.kind()?;
        let required = if kind == Kind::UserNotification { scopes.notifications } else { scopes.statuses };
        if required { self.with_arguments(kind) } else { Err(Error::Scopes) }
    }

    /// The same for one that may have anything.
    pub fn resolve(&self) -> Result<Stream, Error> {
        self.with_arguments(self.kind()?)
    }

    fn kind(&self) -> Result<Kind, Error> {
        self.stream.as_deref().and_then(Kind::parse).ok_or(Error::UnknownStream)
    }

    fn with_arguments(&self, kind: Kind) -> Result<Stream, Error> {
        Ok(match kind {
            Kind::User => Stream::User,
            Kind::UserNotification => Stream::UserNotification,
            Kind::Direct => Stream::Direct,
            Kind::Public { origin, media } => Stream::Public { origin, media },
            Kind::Hashtag { local } => {
                let tag = self.tag.as_ref().filter(|tag| !is_empty(tag)).ok_or(Error::MissingTag)?;
                let name = if local { "hashtag:local" } else { "hashtag" };
                let label = Label::of(name, &tag.to_string());
                Stream::Hashtag { tag: hashtag::normalise(&plain(tag)).into(), local, label }
            }
            Kind::List => {
                let list = self.list.as_ref().filter(|list| !is_empty(list)).ok_or(Error::MissingList)?;
                let id = plain(list).parse().map_err(|_| Error::List)?;
                Stream::List { list: ListId(id), label: Label::of("list", &list.to_string()) }
            }
        })
    }
}

/// As JavaScript has it.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(true) | Value::Array(_) | Value::Object(_) => false,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    User,
    UserNotification,
    Direct,
    List,
    Public { origin: Origin, media: bool },
    Hashtag { local: bool },
}

impl Kind {
    fn parse(name: &str) -> Option<Self> {
        let public = |origin, media| Self::Public { origin, media };
        Some(match name {
            "user" => Self::User,
            "user:notification" => Self::UserNotification,
            "direct" => Self::Direct,
            "list" => Self::List,
            "public" => public(Origin::All, false),
            "public:media" => public(Origin::All, true),
            "public:local" => public(Origin::Local, false),
            "public:local:media" => public(Origin::Local, true),
            "public:remote" => public(Origin::Remote, false),
            "public:remote:media" => public(Origin::Remote, true),
            "hashtag" => Self::Hashtag { local: false },
            "hashtag:local" => Self::Hashtag { local: true },
            _ => return None,
        })
    }
}

/// What Mastodon takes for false in a query.
const FALSE: [&str; 8] = ["", "0", "f", "F", "false", "FALSE", "off", "OFF"];

/// The name of the stream that a path stands for, below the prefix of all of them.
pub fn of_path(path: &str, query: &[(String, String)]) -> Option<String> {
    let is_true = |(name, value): &(String, String)| name == "only_media" && !FALSE.contains(&value.as_str());
    let only_media = query.iter().any(is_true);
    let public = |name: &str| Some(format!("{name}{}", if only_media { ":media" } else { "" }));
    match path {
        "user" => Some("user".into()),
        "user/notification" => Some("user:notification".into()),
        "direct" => Some("direct".into()),
        "list" => Some("list".into()),
        "public" => public("public"),
        "public/local" => public("public:local"),
        "public/remote" => public("public:remote"),
        "hashtag" => Some("hashtag".into()),
        "hashtag/local" => Some("hashtag:local".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Scopes = Scopes { statuses: true, notifications: true };

    fn subscribe(text: &str) -> Option<Result<Stream, Error>> {
        match Command::parse(text)? {
            Command::Subscribe(named) => Some(named.allowed(ALL)),
            Command::Unsubscribe(_) => None,
        }
    }

    #[test]
    fn a_subscription_keeps_what_the_client_wrote() {
        for (text, label) in [
            (r#"{"type":"subscribe","stream":"user"}"#, r#"["user"]"#),
            (r#"{"type":"subscribe","stream":["public:local","user"]}"#, r#"["public:local"]"#),
            (r#"{"type":"subscribe","stream":"hashtag","tag":"Café"}"#, r#"["hashtag","Café"]"#),
            (
                r#"{"type":"subscribe","stream":"hashtag:local","tag":["a\"b"]}"#,
                r#"["hashtag:local","a\"b"]"#,
            ),
            (r#"{"type":"subscribe","stream":"list","list":12}"#, r#"["list",12]"#),
            (r#"{"type":"subscribe","stream":"list","list":"12"}"#, r#"["list","12"]"#),
        ] {
            let stream = subscribe(text).unwrap().unwrap();
            assert_eq!(stream.label().as_str(), label);
        }
        let tags = [r#""Café""#, r#""CAFE""#].map(|tag| {
            subscribe(&format!(r#"{{"type":"subscribe","stream":"hashtag","tag":{tag}}}"#)).unwrap().unwrap()
        });
        assert!(tags[0].is_same(&tags[1]) && tags[0] != tags[1]);
    }

    #[test]
    fn what_is_wrong_is_said_in_order_or_ignored() {
        for (text, error) in [
            (r#"{"type":"subscribe","stream":"users"}"#, Error::UnknownStream),
            (r#"{"type":"subscribe","stream":7}"#, Error::UnknownStream),
            (r#"{"type":"subscribe"}"#, Error::UnknownStream),
            (r#"{"type":"subscribe","stream":"hashtag"}"#, Error::MissingTag),
            (r#"{"type":"subscribe","stream":"hashtag","tag":""}"#, Error::MissingTag),
            (r#"{"type":"subscribe","stream":"list"}"#, Error::MissingList),
            (r#"{"type":"subscribe","stream":"list","list":"x"}"#, Error::List),
            (r#"{"type":"subscribe","stream":"list","list":99999999999999999999}"#, Error::List),
        ] {
            assert_eq!(subscribe(text), Some(Err(error)), "{text}");
        }
        for text in
            ["", "x", "7", "null", "[]", r#"{"type":"hello"}"#, r#"{"type":7}"#, r#"{"stream":"user"}"#]
        {
            assert_eq!(Command::parse(text), None, "{text}");
        }
        let none = Scopes { statuses: false, notifications: false };
        let named = |stream: &str| Named { stream: Some(stream.into()), ..Named::default() };
        assert_eq!(named("hashtag").allowed(none), Err(Error::Scopes));
        assert_eq!(named("hashtags").allowed(none), Err(Error::UnknownStream));
        let only_notifications = Scopes { notifications: true, ..none };
        assert_eq!(named("user:notification").allowed(only_notifications), Ok(Stream::UserNotification));
        assert_eq!(named("user").allowed(only_notifications), Err(Error::Scopes));
    }

    #[test]
    fn paths_are_streams() {
        let media = |value: &str| vec![("only_media".to_owned(), value.to_owned())];
        for (path, query, name) in [
            ("user", vec![], Some("user")),
            ("user/notification", vec![], Some("user:notification")),
            ("public/remote", media("true"), Some("public:remote:media")),
            ("public", media("1"), Some("public:media")),
            ("public", media("off"), Some("public")),
            ("public", media(""), Some("public")),
            ("user", media("true"), Some("user")),
            ("hashtag/local", vec![], Some("hashtag:local")),
            ("User", vec![], None),
            ("public/", vec![], None),
            ("", vec![], None),
        ] {
            assert_eq!(of_path(path, &query).as_deref(), name, "{path}");
        }
    }
}
