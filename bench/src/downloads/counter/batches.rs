//! What API nodes send, made beforehand: the load must not take the time that is measured.
//!
//! Each download is a count of its own, as if nobody else had asked for the same in its batch. Of a message that was sent
//! before only the number of the batch changes, which stands at one place in it.

use super::events::Event;
use anyhow::{Context, Result, ensure};
use cratemill_protocol::{
    ArtifactId,
    bus::{ClientClass, DownloadBatch, DownloadCount},
};

/// As many as an API node puts in a batch.
pub(super) const BATCH: usize = 4_096;
/// A number that no batch has, and that nothing else in a message looks like: eight bytes in MessagePack.
const PLACEHOLDER: u64 = 0x7ea5_c0de_5eed_f00d;

/// The batches of one run of one publisher.
pub(super) struct Batches {
    templates: Vec<Template>,
}

struct Template {
    bytes: Vec<u8>,
    /// Where the eight bytes of the batch's number begin.
    number: usize,
}

impl Batches {
    /// All of `events`, in batches.
    pub(super) fn new(node: &str, epoch: i64, day: i32, events: &[Event]) -> Result<Self> {
        let template = |events| Template::new(node, epoch, day, events);
        let templates: Vec<_> = events.chunks_exact(BATCH).map(template).collect::<Result<_>>()?;
        ensure!(!templates.is_empty(), "too few events for a batch");
        Ok(Self { templates })
    }

    /// The message with batch `number`, from 1.
    pub(super) fn message(&self, number: u64) -> Result<Vec<u8>> {
        let template = &self.templates[usize::try_from(number)? % self.templates.len()];
        let mut bytes = template.bytes.clone();
        bytes[template.number..template.number + 8].copy_from_slice(&number.to_be_bytes());
        Ok(bytes)
    }
}

impl Template {
    fn new(node: &str, epoch: i64, day: i32, events: &[Event]) -> Result<Self> {
        let bytes = encode(node, epoch, PLACEHOLDER, day, events)?;
        let number = PLACEHOLDER.to_be_bytes();
        let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&number)).collect();
        ensure!(places.len() == 1, "the number of a batch stands at {} places of a message", places.len());
        Ok(Self { bytes, number: places[0] })
    }
}

fn encode(node: &str, epoch: i64, batch: u64, day: i32, events: &[Event]) -> Result<Vec<u8>> {
    let count = |event: &Event| -> Result<DownloadCount> {
        let client = ClientClass::ALL.into_iter().find(|class| class.as_str() == event.class);
        let client = client.context("no such class")?;
        Ok(DownloadCount { artifact: ArtifactId(event.artifact), day, client, count: 1 })
    };
    let counts = events.iter().map(count).collect::<Result<_>>()?;
    Ok(DownloadBatch { node: node.to_owned(), epoch, batch, counts, installs: Vec::new() }.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_a_node_sends_whatever_its_number() {
        let events: Vec<_> = (0..2 * BATCH + 5)
            .map(|artifact| Event { artifact: artifact.try_into().unwrap(), class: "curl" })
            .collect();
        let batches = Batches::new("n", 7, 20_000, &events).unwrap();
        for number in [1, 2, 127, 128, 70_000, u64::from(u32::MAX) + 1] {
            let batch = DownloadBatch::decode(&batches.message(number).unwrap()).unwrap();
            assert_eq!((batch.node.as_str(), batch.epoch, batch.batch), ("n", 7, number));
            assert_eq!(batch.counts.len(), BATCH);
            assert!(batch.counts.iter().all(|count| count.count == 1 && count.day == 20_000));
        }
        assert!(Batches::new("n", 7, 20_000, &events[..5]).is_err());
    }
}
