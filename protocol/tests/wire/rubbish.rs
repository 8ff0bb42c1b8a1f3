//! What nobody should send: an error, never a panic.

use cratemill_protocol::{
    builder::{ClientMessage, JobRef, ServerMessage},
    bus,
    codec::Encoding,
    manifest::Manifest,
    sshsig,
};
use proptest::prelude::*;
use serde::de::DeserializeOwned;

const ENCODINGS: [Encoding; 2] = [Encoding::Json, Encoding::MsgPack];

fn is_refused<T: DeserializeOwned>(bytes: &[u8]) -> bool {
    ENCODINGS.iter().all(|encoding| encoding.decode::<T>(bytes).is_err())
}

#[test]
fn unknown_types_are_errors() {
    for json in [
        serde_json::json!({ "type": "later" }),
        serde_json::json!({ "type": 1 }),
        serde_json::json!({ "slots": 1 }),
        serde_json::json!({ "type": "job_request" }),
        serde_json::json!({ "type": "job_request", "slots": -1 }),
        serde_json::json!({ "type": "job_request", "slots": 70_000 }),
        serde_json::json!([]),
    ] {
        for encoding in ENCODINGS {
            let bytes = encoding.encode(&json);
            assert!(encoding.decode::<ClientMessage>(&bytes).is_err(), "{json}");
            assert!(encoding.decode::<ServerMessage>(&bytes).is_err(), "{json}");
        }
    }
}

#[test]
fn names_are_checked_when_they_are_decoded() {
    for target in ["../x", "X86", "", "a b"] {
        let json = serde_json::json!({
            "type": "hello", "fingerprint": "f", "agent": "a", "targets": [target], "slots": 1,
        });
        for encoding in ENCODINGS {
            assert!(encoding.decode::<ClientMessage>(&encoding.encode(&json)).is_err(), "{target}");
        }
    }
}

#[test]
fn cut_off_messages_are_errors() {
    use cratemill_protocol::{Attempt, JobId};
    let message = ClientMessage::JobAccepted(JobRef { job: JobId(1_000_000), attempt: Attempt(3) });
    for encoding in ENCODINGS {
        let bytes = encoding.encode(&message);
        for end in 0..bytes.len() {
            assert!(encoding.decode::<ClientMessage>(&bytes[..end]).is_err(), "{end}");
        }
    }
    let bytes = bus::encode(&bus::RefreshReply::Fresh);
    assert!((0..bytes.len()).all(|end| bus::decode::<bus::RefreshReply>(&bytes[..end]).is_err()));
}

#[test]
fn a_length_that_lies_takes_no_memory() {
    // An array of four billion elements, a string of four gigabytes: refused at the end of the input.
    for bytes in [&b"\xdd\xff\xff\xff\xff"[..], b"\xdb\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xa4type"] {
        assert!(is_refused::<ClientMessage>(bytes));
    }
}

#[test]
fn deep_nesting_is_refused() {
    let arrays = vec![0x91; 100_000];
    assert!(is_refused::<ServerMessage>(&arrays));
    assert!(is_refused::<ServerMessage>("[".repeat(100_000).as_bytes()));
}

proptest! {
    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        // A message by chance is as good as none; what counts is that it returns.
        for encoding in ENCODINGS {
            _ = encoding.decode::<ClientMessage>(&bytes);
            _ = encoding.decode::<ServerMessage>(&bytes);
        }
        _ = bus::decode::<bus::NodeMessage>(&bytes);
        _ = bus::decode::<bus::EventMessage>(&bytes);
        _ = bus::decode::<bus::TopicMessage>(&bytes);
        _ = bus::decode::<bus::TimelineEvent>(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(Manifest::parse(&text).is_err());
        prop_assert!(sshsig::public_key(&text).is_err());
    }

    #[test]
    fn one_changed_byte(
        (_, message) in prop::sample::select(crate::builder::server_messages()),
        position in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        for encoding in ENCODINGS {
            let mut bytes = encoding.encode(&message);
            let position = position.index(bytes.len());
            bytes[position] = byte;
            _ = encoding.decode::<ServerMessage>(&bytes);
        }
    }
}
