//! What the server says: byte for byte as the older system's libraries write it.

use super::{Code, DataForm, IdForm};
use cratemill_protocol::SubscriptionId;
use minicbor::Encoder;
use uuid::Uuid;

/// Writing to memory cannot fail.
const MEMORY: &str = "memory takes everything";

/// Something was published; the client fetches it.
pub fn issue(SubscriptionId(subscription): SubscriptionId, publication: Uuid, ids: IdForm) -> Vec<u8> {
    let mut writer = Writer::new("Issue");
    writer.array(2);
    writer.id(subscription, ids);
    writer.id(publication, ids);
    writer.out.into_writer()
}

/// The beginning of an index of so many, which [`ids`] go on with.
pub fn index(SubscriptionId(log): SubscriptionId, count: usize, ids: IdForm) -> Vec<u8> {
    let mut writer = Writer::new("LogIndex");
    writer.array(2);
    writer.id(log, ids);
    writer.array(count);
    writer.out.into_writer()
}

/// The next of an index.
pub fn ids(publications: &[Uuid], ids: IdForm) -> Vec<u8> {
    let mut writer = Writer { out: Encoder::new(Vec::new()) };
    for publication in publications {
        writer.id(*publication, ids);
    }
    writer.out.into_writer()
}

/// A publication as the log has it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub publication: Uuid,
    pub subscription: SubscriptionId,
    pub data: bytes::Bytes,
}

/// The beginning of so many entries, each of which is an [`entry`].
pub fn entries(count: usize) -> Vec<u8> {
    let mut writer = Writer::new("LogEntry");
    writer.array(count);
    writer.out.into_writer()
}

pub fn entry(Entry { publication, subscription, data }: &Entry, ids: IdForm, form: DataForm) -> Vec<u8> {
    let mut writer = Writer { out: Encoder::new(Vec::new()) };
    writer.map(3);
    writer.text("publication_id");
    writer.id(*publication, ids);
    writer.text("subscription_id");
    writer.id(subscription.0, ids);
    writer.text("data");
    writer.data(data, form);
    writer.out.into_writer()
}

pub fn error(code: Code, message: &str, about: Option<Uuid>, ids: IdForm) -> Vec<u8> {
    let mut writer = Writer::new("Error");
    writer.map(2 + usize::from(about.is_some()));
    writer.text("code");
    writer.text(code.as_str());
    writer.text("message");
    writer.text(message);
    if let Some(about) = about {
        writer.text("about");
        writer.id(about, ids);
    }
    writer.out.into_writer()
}

struct Writer {
    out: Encoder<Vec<u8>>,
}

impl Writer {
    fn new(name: &str) -> Self {
        let mut this = Self { out: Encoder::new(Vec::new()) };
        this.map(1);
        this.text(name);
        this
    }

    fn map(&mut self, length: usize) {
        self.out.map(length as u64).expect(MEMORY);
    }

    fn array(&mut self, length: usize) {
        self.out.array(length as u64).expect(MEMORY);
    }

    fn text(&mut self, text: &str) {
        self.out.str(text).expect(MEMORY);
    }

    fn id(&mut self, id: Uuid, form: IdForm) {
        match form {
            IdForm::Bytes => self.out.bytes(id.as_bytes()).expect(MEMORY),
            IdForm::Text => self.out.str(&id.to_string()).expect(MEMORY),
        };
    }

    fn data(&mut self, data: &[u8], form: DataForm) {
        match form {
            DataForm::Bytes => drop(self.out.bytes(data).expect(MEMORY)),
            DataForm::Array => {
                self.array(data.len());
                for byte in data {
                    self.out.u8(*byte).expect(MEMORY);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex::encode as hex;

    const ID: Uuid = Uuid::from_u128(0x6d1f_8a3e_7f0f_4b5a_9a3a_0d2f_8c5b_1e77);

    #[test]
    fn golden() {
        let (s, id) = (SubscriptionId(ID), ID.simple().to_string());
        assert_eq!(hex(issue(s, ID, IdForm::Bytes)), format!("a16549737375658250{id}50{id}"));
        assert_eq!(hex(index(s, 1, IdForm::Bytes)), format!("a1684c6f67496e6465788250{id}81"));
        assert_eq!(hex(ids(&[ID, ID], IdForm::Bytes)), format!("50{id}50{id}"));
        assert_eq!(hex(entries(0)), "a1684c6f67456e74727980");
        let one = Entry { publication: ID, subscription: s, data: vec![1, 24].into() };
        let begin =
            format!("a36e7075626c69636174696f6e5f696450{id}6f737562736372697074696f6e5f696450{id}6464617461");
        assert_eq!(hex(entry(&one, IdForm::Bytes, DataForm::Array)), begin.clone() + "82011818");
        assert_eq!(hex(entry(&one, IdForm::Bytes, DataForm::Bytes)), begin + "420118");
        let expected = "a1654572726f72a264636f64656474657874676d65737361676562 6e6f".replace(' ', "");
        assert_eq!(hex(error(Code::Text, "no", None, IdForm::Bytes)), expected);
        assert!(hex(error(Code::Text, "no", Some(ID), IdForm::Text)).starts_with("a1654572726f72a3"));
    }
}
