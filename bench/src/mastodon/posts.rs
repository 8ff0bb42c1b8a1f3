//! Statuses as Mastodon writes them, and Redis, which is told of them.

use super::farm::AUTHORS;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{fmt::Write as _, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);
const TEXT: &str = "Streaming is what people look at all day, and a server that does it well is one that nobody \
    thinks about: statuses come when they are written, in their order, to those whom they are for, whether these \
    are ten or ten thousand.";

/// A message with a status, about as long as most are, by one of the authors: some viewers do not want to see it.
pub(super) fn update(number: u64) -> String {
    let author = number.cast_signed() * 37 % AUTHORS;
    let (username, domain) = (format!("author{author}"), format!("d{}.example", author % 200));
    let word = if number.is_multiple_of(4) { format!("word{}", number % 500) } else { "nothing".to_owned() };
    let status = json!({
        "id": (112_000_000_000_000_000 + number).to_string(),
        "created_at": "2026-11-22T12:00:00.000Z", "in_reply_to_id": null, "in_reply_to_account_id": null,
        "sensitive": false, "spoiler_text": "", "visibility": "public",
        "language": if number.is_multiple_of(10) { "fr" } else { "en" },
        "uri": format!("https://{domain}/users/{username}/statuses/{number}"),
        "url": format!("https://{domain}/@{username}/{number}"),
        "replies_count": 0, "reblogs_count": 0, "favourites_count": 0, "edited_at": null,
        "content": format!("<p>{TEXT}</p><p>This one is about {word}. <a href=\"https://{domain}/tags/rust\" class=\"mention hashtag\" rel=\"tag\">#<span>rust</span></a></p>"),
        "reblog": null,
        "account": {
            "id": (1_000_000 + author).to_string(), "username": username, "acct": format!("{username}@{domain}"),
            "display_name": "An author", "locked": false, "bot": false, "discoverable": true, "group": false,
            "created_at": "2020-01-01T00:00:00.000Z", "note": "<p>Writes.</p>",
            "url": format!("https://{domain}/@{username}"),
            "avatar": format!("https://files.example/cache/accounts/avatars/{author}/original/0123456789abcdef.png"),
            "header": "https://files.example/headers/original/missing.png",
            "followers_count": 100, "following_count": 100, "statuses_count": 1_000, "emojis": [], "fields": [],
        },
        "media_attachments": [], "emojis": [], "card": null, "poll": null,
        "mentions": [{ "id": (1_000_000 + (author + 1) % AUTHORS).to_string(), "username": "somebody", "url": "https://example.com/@somebody", "acct": "somebody" }],
        "tags": [{ "name": "rust", "url": format!("https://{domain}/tags/rust") }],
    });
    json!({ "event": "update", "payload": status, "queued_at": 1_760_000_000_000_u64 }).to_string()
}

/// Somebody who publishes.
pub(super) struct Publisher(TcpStream);

impl Publisher {
    pub(super) async fn connect(redis: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(redis).await?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Returns how many servers have been told.
    pub(super) async fn publish(&mut self, channel: &str, message: &str) -> Result<u64> {
        let answer = self.command(&["PUBLISH", channel, message]).await?;
        answer.strip_prefix(':').and_then(|count| count.parse().ok()).context("no number of receivers")
    }

    /// Its answer, if that is one line.
    pub(super) async fn command(&mut self, words: &[&str]) -> Result<String> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            write!(command, "${}\r\n{word}\r\n", word.len())?;
        }
        self.0.write_all(command.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            let read = timeout(PATIENCE, self.0.read_buf(&mut answer)).await??;
            ensure!(read > 0, "Redis closed the connection");
        }
        let answer = String::from_utf8(answer)?.trim_end().to_owned();
        ensure!(!answer.starts_with('-'), "Redis: {answer}");
        Ok(answer)
    }
}
