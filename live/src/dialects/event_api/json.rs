//! Events as the API shows them.

use cratemill_protocol::{CollectionId, EventId, UserId};
use cratemill_store::events::Event;
use serde::Serialize;

#[derive(Serialize)]
struct Shown<'a> {
    id: EventId,
    user_id: UserId,
    collection_id: CollectionId,
    event: &'a str,
    timestamp: i64,
    published: bool,
    cancelled: bool,
}

/// With its data as it was written.
pub fn put_event(event: &Event, out: &mut Vec<u8>) {
    let Event { id, user_id, collection_id, timestamp, published, cancelled, .. } = *event;
    let shown = Shown { id, user_id, collection_id, event: &event.event, timestamp, published, cancelled };
    serde_json::to_writer(&mut *out, &shown).expect("it has only text keys, and memory takes it");
    // Its last brace.
    out.pop();
    out.extend_from_slice(b",\"data\":");
    out.extend_from_slice(event.data.as_bytes());
    out.push(b'}');
}

/// `{"event": Event}`
pub fn event(event: &Event) -> Vec<u8> {
    let mut out = b"{\"event\":".to_vec();
    put_event(event, &mut out);
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let id = "6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77".parse().unwrap();
        let shown = event(&Event {
            id: EventId(id),
            seq: 1,
            user_id: UserId(id),
            collection_id: CollectionId(id),
            event: "a \"b\"".into(),
            timestamp: -5,
            published: true,
            cancelled: false,
            data: "{\"n\":123456789012345678901234}".into(),
        });
        let expected = concat!(
            r#"{"event":{"id":"6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77","user_id":"6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77","#,
            r#""collection_id":"6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77","event":"a \"b\"","timestamp":-5,"published":true,"#,
            r#""cancelled":false,"data":{"n":123456789012345678901234}}}"#,
        );
        assert_eq!(String::from_utf8(shown).unwrap(), expected);
    }
}
