//! Posts as clients get them.

use super::{
    post::{Payload, Post, escape},
    stream::Label,
};
use crate::ws::frames;
use bytes::{BufMut as _, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

/// Bytes of the digest that an id is.
const ID_BYTES: usize = 8;

/// What the event says, whatever stream it comes on.
pub(super) fn id(post: &Post) -> Box<str> {
    let mut digest = Sha256::new();
    digest.update(post.event.as_bytes());
    digest.update([0]);
    if let Payload::Text(text) | Payload::Json(text) = &post.payload {
        digest.update(text.as_bytes());
    }
    hex::encode(&digest.finalize()[..ID_BYTES]).into()
}

/// `filtered` goes to the end of the status.
pub(super) fn event(post: &Post, filtered: Option<&str>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_slice(b"event: ");
    out.put_slice(post.event.as_bytes());
    out.put_slice(b"\ndata: ");
    match &post.payload {
        // Clients that read JSON there take this for nothing.
        Payload::None => out.put_slice(b"undefined"),
        Payload::Text(text) => put_lines(text, &mut out),
        Payload::Json(json) => match filtered.and_then(|filtered| Some((open(json)?, filtered))) {
            Some((head, filtered)) => {
                out.put_slice(head.as_bytes());
                put_filtered(head, filtered, |text| out.put_slice(text.as_bytes()));
            }
            None => out.put_slice(json.as_bytes()),
        },
    }
    out.put_slice(b"\nid: ");
    out.put_slice(post.id().as_bytes());
    out.put_slice(b"\n\n");
    out.freeze()
}

/// A line break within a text goes on in another line of the event.
fn put_lines(text: &str, out: &mut BytesMut) {
    for (number, line) in text.split(['\n', '\r']).enumerate() {
        if number > 0 {
            out.put_slice(b"\ndata: ");
        }
        out.put_slice(line.as_bytes());
    }
}

/// In a frame of WebSocket.
pub(super) fn frame(post: &Post, label: &Label, filtered: Option<&str>) -> Bytes {
    let escaped = post.escaped();
    let mut text = String::with_capacity(escaped.len() + label.as_str().len() + post.event.len() + 64);
    text.push_str(r#"{"stream":"#);
    text.push_str(label.as_str());
    text.push_str(r#","event":""#);
    text.push_str(&post.event);
    text.push('"');
    if post.payload != Payload::None {
        text.push_str(r#","payload":""#);
        match filtered.and_then(|filtered| Some((open(escaped)?, escape(filtered).ok()?))) {
            Some((head, filtered)) => {
                text.push_str(head);
                put_escaped(head, &filtered, &mut text);
            }
            None => text.push_str(escaped),
        }
        text.push('"');
    }
    text.push('}');
    let mut out = BytesMut::with_capacity(text.len() + 10);
    frames::put_text(text.as_bytes(), &mut out);
    out.freeze()
}

/// An object without its last brace.
fn open(object: &str) -> Option<&str> {
    object.strip_suffix('}')
}

fn put_filtered(head: &str, filtered: &str, mut put: impl FnMut(&str)) {
    put(if head.ends_with('{') { r#""filtered":"# } else { r#","filtered":"# });
    put(filtered);
    put("}");
}

fn put_escaped(head: &str, filtered: &str, out: &mut String) {
    out.push_str(if head.ends_with('{') { r#"\"filtered\":"# } else { r#",\"filtered\":"# });
    out.push_str(filtered);
    out.push('}');
}

/// Of a connection that asked for what it does not get; an error of an unsubscription has no status.
pub fn error(why: &str, status: Option<u16>) -> Bytes {
    let status = status.map(|status| format!(r#","status":{status}"#)).unwrap_or_default();
    let why = escape(why).unwrap_or_default();
    let mut out = BytesMut::new();
    frames::put_text(format!(r#"{{"error":"{why}"{status}}}"#).as_bytes(), &mut out);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::Form;
    use super::*;

    const STATUS: &str = r#"{"event":"update","payload":{ "account":{"id":"1","username":"a","acct":"a"},"content":"\"x\"" }}"#;

    fn told(message: &str, filtered: bool, form: Form) -> String {
        let post = Post::parse(message.as_bytes(), filtered).unwrap();
        let bytes = post.encoded(form, &Label::Fixed(r#"["public"]"#));
        let start = bytes.iter().position(|byte| matches!(byte, b'{' | b'e')).unwrap();
        String::from_utf8(bytes[start..].to_vec()).unwrap()
    }

    #[test]
    fn events_are_lines() {
        let status = told(STATUS, true, Form::Events);
        let (event, id) = status.split_once("\nid: ").unwrap();
        assert_eq!(
            event,
            "event: update\ndata: {\"account\":{\"id\":\"1\",\"username\":\"a\",\"acct\":\"a\"},\"content\":\"\\\"x\\\"\",\"filtered\":[]}"
        );
        assert_eq!(id.len(), 2 * ID_BYTES + 2);
        assert!(!told(STATUS, false, Form::Events).contains("filtered"));
        let lines = told(r#"{"event":"delete","payload":"a\nb"}"#, true, Form::Events);
        assert!(lines.starts_with("event: delete\ndata: a\ndata: b\nid: "), "{lines}");
        let nothing = told(r#"{"event":"filters_changed"}"#, false, Form::Events);
        assert!(nothing.starts_with("event: filters_changed\ndata: undefined\n"), "{nothing}");
    }

    #[test]
    fn frames_are_json_in_json() {
        for (message, filtered, payload) in [
            (r#"{"event":"delete","payload":"12"}"#, true, Some("12")),
            (r#"{"event":"x","payload":{"a":"\u0001ä\""}}"#, true, Some(r#"{"a":"\u0001ä\""}"#)),
            (
                STATUS,
                true,
                Some(r#"{"account":{"id":"1","username":"a","acct":"a"},"content":"\"x\"","filtered":[]}"#),
            ),
            (r#"{"event":"filters_changed"}"#, false, None),
        ] {
            let frame: serde_json::Value =
                serde_json::from_str(&told(message, filtered, Form::Socket)).unwrap();
            assert_eq!(frame["stream"][0], "public");
            assert_eq!(frame.get("payload").map(|payload| payload.as_str().unwrap()), payload);
        }
    }

    #[test]
    fn matches_go_into_the_status() {
        let post = Post::parse(STATUS.as_bytes(), true).unwrap();
        let label = Label::Fixed(r#"["public"]"#);
        let bytes = post.annotated(Form::Socket, &label, r#"[{"a":"\""}]"#);
        let start = bytes.iter().position(|byte| *byte == b'{').unwrap();
        let frame: serde_json::Value = serde_json::from_slice(&bytes[start..]).unwrap();
        let status: serde_json::Value = serde_json::from_str(frame["payload"].as_str().unwrap()).unwrap();
        assert_eq!(status["filtered"][0]["a"], "\"");
    }
}
