//! The zero-code event API: everybody gets every event, under the name that its author gave it. Pure.

pub mod json;
pub mod request;

use crate::engine::{
    frame::{Frame, Message},
    viewer::DropReason,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use cratemill_protocol::bus::TimelineEvent;

/// The name of what is said of the connection itself.
const STATUS: &str = "internal_status";

pub fn frame(frame: &Frame, out: &mut BytesMut) {
    put_id(&frame.sequence, out);
    out.put_slice(frame.encoded(message));
}

/// An event at its place in the stream, which an old one does not need to be in any more.
pub fn event(sequence: i64, name: &str, data: &str, out: &mut BytesMut) {
    put_id(&sequence, out);
    put_event(name, data, out);
}

fn put_id(sequence: &impl ToString, out: &mut BytesMut) {
    out.put_slice(b"id: ");
    out.put_slice(sequence.to_string().as_bytes());
    out.put_u8(b'\n');
}

fn message(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    if let Message::Timeline(TimelineEvent { name, data, .. }) = message {
        put_event(name, data.as_str(), &mut out);
    }
    out.freeze()
}

/// A name has no control characters, and JSON text that was compacted has one line.
fn put_event(name: &str, data: &str, out: &mut BytesMut) {
    for part in ["event: ", name, "\ndata: ", data, "\n\n"] {
        out.put_slice(part.as_bytes());
    }
}

fn status(what: &str) -> Bytes {
    let mut out = BytesMut::new();
    put_event(STATUS, what, &mut out);
    out.freeze()
}

/// Nothing was ever published.
pub fn connected() -> Bytes {
    status("connected")
}

pub fn ping() -> Bytes {
    Bytes::from_static(b"event: internal_status\ndata: ping\n\n")
}

/// A comment, so that whoever stands between passes the answer on.
pub fn hello() -> Bytes {
    Bytes::from_static(b":\n\n")
}

pub fn dropped(reason: DropReason) -> Bytes {
    match reason {
        DropReason::Slow => status("slow"),
        DropReason::Broken => status("broken"),
    }
}

pub fn draining() -> Bytes {
    status("draining")
}

/// Where a client goes on. What is no place of the stream is as nothing.
pub fn last_event_id(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::frame::Message;
    use cratemill_protocol::{EventId, JsonText};

    #[test]
    fn frames_golden() {
        let data = JsonText::parse(br#" { "a" : [1, "x\ny"] } "#).unwrap();
        let id = EventId("6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77".parse().unwrap());
        let message = Message::Timeline(TimelineEvent { id, name: " an event: ä".into(), data });
        let mut out = BytesMut::new();
        frame(&Frame::new(7, message), &mut out);
        event(-3, "old", "1", &mut out);
        let expected =
            "id: 7\nevent:  an event: ä\ndata: {\"a\":[1,\"x\\ny\"]}\n\nid: -3\nevent: old\ndata: 1\n\n";
        assert_eq!(out, expected);
        assert_eq!(connected(), "event: internal_status\ndata: connected\n\n");
        assert_eq!(ping(), status("ping"));
    }

    #[test]
    fn ids() {
        assert_eq!(last_event_id("0"), Some(0));
        assert_eq!(last_event_id("812"), Some(812));
        for bad in ["", "-3", "+1", "1 ", "x", "1.5", "99999999999999999999"] {
            assert_eq!(last_event_id(bad), None, "{bad}");
        }
    }
}
