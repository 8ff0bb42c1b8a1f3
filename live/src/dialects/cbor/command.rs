//! What clients ask for.
//!
//! An enum of the older system's language as its libraries read one: a map of one entry or an array of two, the fields in
//! a map in any order, with others beside, or in an array; tags say nothing.

use super::{Code, DataForm, IdForm};
use cratemill_protocol::SubscriptionId;
use minicbor::{Decoder, data::Type};
use uuid::Uuid;

/// Entries that are asked for at once.
const MAX_ENTRIES: usize = 10_000;
const GROUP_BYTES: std::ops::RangeInclusive<usize> = 1..=64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    GetLogIndex(SubscriptionId),
    GetLogEntries(SubscriptionId, Vec<Uuid>),
    Subscribe(SubscriptionId),
    SubscribeQueue(SubscriptionId, String),
    Unsubscribe(SubscriptionId),
    SubmitPublication(SubscriptionId, Vec<u8>),
    Ack(Uuid),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub command: Command,
    pub ids: IdForm,
    /// If it has data.
    pub data: Option<DataForm>,
}

/// Why a message is no command, for its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    pub message: String,
    pub about: Option<Uuid>,
    /// As far as it was read.
    pub ids: IdForm,
}

/// `most` bytes of data are taken.
pub fn parse(message: &[u8], most: usize) -> Result<Parsed, Refusal> {
    let mut reader =
        Reader { decoder: Decoder::new(message), ids: IdForm::default(), fields: Fields::default() };
    let read = reader.command(most);
    let (ids, data) = (reader.ids, reader.fields.data_form);
    let refusal = |(code, message), about| Refusal { code, message, about, ids };
    let about = reader.fields.subscription_id.or(reader.fields.log_id);
    match read {
        Ok(_) if reader.decoder.position() != message.len() => {
            Err(refusal((Code::Malformed, "something follows the command".into()), about))
        }
        Ok(command) => Ok(Parsed { command, ids, data }),
        Err(why) => Err(refusal(why, about)),
    }
}

type Why = (Code, String);

#[allow(clippy::needless_pass_by_value, reason = "map_err calls it")]
fn malformed(why: impl ToString) -> Why {
    (Code::Malformed, why.to_string())
}

#[derive(Default)]
struct Fields {
    log_id: Option<Uuid>,
    subscription_id: Option<Uuid>,
    publication_id: Option<Uuid>,
    entries: Option<Vec<Uuid>>,
    submission: Option<Vec<u8>>,
    group: Option<String>,
    data_form: Option<DataForm>,
}

struct Reader<'a> {
    decoder: Decoder<'a>,
    ids: IdForm,
    fields: Fields,
}

impl Reader<'_> {
    fn command(&mut self, most: usize) -> Result<Command, Why> {
        self.skip_tags()?;
        let (length, expected) = match self.kind()? {
            Type::Map | Type::MapIndef => (self.decoder.map().map_err(malformed)?, 1),
            Type::Array | Type::ArrayIndef => (self.decoder.array().map_err(malformed)?, 2),
            other => return Err(malformed(format!("expected a command, found {other}"))),
        };
        if length.is_some_and(|length| length != expected) {
            return Err(malformed("expected one command"));
        }
        let name = self.text()?;
        let names: &[&str] = match name.as_str() {
            "GetLogIndex" => &["log_id"],
            "GetLogEntries" => &["log_id", "entries"],
            "Subscribe" | "Unsubscribe" => &["subscription_id"],
            "SubscribeQueue" => &["subscription_id", "group"],
            "SubmitPublication" => &["subscription_id", "submission"],
            "Ack" => &["publication_id"],
            _ => return Err(malformed(format!("unknown command {:?}", shown(&name)))),
        };
        self.fields(names, most)?;
        if length.is_none() {
            self.end()?;
        }
        self.build(&name)
    }

    fn build(&mut self, name: &str) -> Result<Command, Why> {
        fn need<T>(field: Option<T>, name: &str) -> Result<T, Why> {
            field.ok_or_else(|| malformed(format!("missing field {name}")))
        }
        let fields = std::mem::take(&mut self.fields);
        let subscription = fields.subscription_id.map(SubscriptionId);
        // A refusal says what it is about.
        (self.fields.subscription_id, self.fields.log_id) = (fields.subscription_id, fields.log_id);
        self.fields.data_form = fields.data_form;
        Ok(match name {
            "GetLogIndex" => Command::GetLogIndex(SubscriptionId(need(fields.log_id, "log_id")?)),
            "GetLogEntries" => Command::GetLogEntries(
                SubscriptionId(need(fields.log_id, "log_id")?),
                need(fields.entries, "entries")?,
            ),
            "Subscribe" => Command::Subscribe(need(subscription, "subscription_id")?),
            "Unsubscribe" => Command::Unsubscribe(need(subscription, "subscription_id")?),
            "SubscribeQueue" => {
                let (subscription, group) =
                    (need(subscription, "subscription_id")?, need(fields.group, "group")?);
                if !GROUP_BYTES.contains(&group.len()) {
                    return Err((Code::InvalidGroup, "a group is 1 to 64 bytes of text".into()));
                }
                Command::SubscribeQueue(subscription, group)
            }
            "SubmitPublication" => Command::SubmitPublication(
                need(subscription, "subscription_id")?,
                need(fields.submission, "submission")?,
            ),
            _ => Command::Ack(need(fields.publication_id, "publication_id")?),
        })
    }

    fn fields(&mut self, names: &[&str], most: usize) -> Result<(), Why> {
        self.skip_tags()?;
        match self.kind()? {
            Type::Map | Type::MapIndef => {
                let mut left = self.decoder.map().map_err(malformed)?;
                while self.more(&mut left)? {
                    // Who knows more fields than we do says them beside ours.
                    let name = if matches!(self.kind()?, Type::String | Type::StringIndef) {
                        self.text()?
                    } else {
                        self.skip()?;
                        String::new()
                    };
                    if names.contains(&name.as_str()) {
                        self.field(&name, most)?;
                    } else {
                        self.skip()?;
                    }
                }
                Ok(())
            }
            Type::Array | Type::ArrayIndef => {
                let mut left = self.decoder.array().map_err(malformed)?;
                let mut names = names.iter();
                while self.more(&mut left)? {
                    let name = names.next().ok_or_else(|| malformed("too many fields"))?;
                    self.field(name, most)?;
                }
                Ok(())
            }
            other => Err(malformed(format!("expected fields, found {other}"))),
        }
    }

    fn field(&mut self, name: &str, most: usize) -> Result<(), Why> {
        fn set<T>(field: &mut Option<T>, value: T, name: &str) -> Result<(), Why> {
            let twice = field.replace(value).is_some();
            if twice { Err(malformed(format!("duplicate field {name}"))) } else { Ok(()) }
        }
        match name {
            "log_id" => {
                let id = self.id()?;
                set(&mut self.fields.log_id, id, name)
            }
            "subscription_id" => {
                let id = self.id()?;
                set(&mut self.fields.subscription_id, id, name)
            }
            "publication_id" => {
                let id = self.id()?;
                set(&mut self.fields.publication_id, id, name)
            }
            "entries" => {
                let entries = self.entries()?;
                set(&mut self.fields.entries, entries, name)
            }
            "group" => {
                let group = self.text()?;
                set(&mut self.fields.group, group, name)
            }
            _ => {
                let data = self.data(most)?;
                set(&mut self.fields.submission, data, name)
            }
        }
    }

    fn id(&mut self) -> Result<Uuid, Why> {
        self.skip_tags()?;
        match self.kind()? {
            Type::Bytes | Type::BytesIndef => {
                let bytes = self.bytes(16)?;
                Uuid::from_slice(&bytes).map_err(|_| malformed("an id is 16 bytes"))
            }
            Type::String | Type::StringIndef => {
                self.ids = IdForm::Text;
                let text = self.text()?;
                text.parse().map_err(|_| malformed(format!("{:?} is no UUID", shown(&text))))
            }
            other => Err(malformed(format!("expected an id, found {other}"))),
        }
    }

    fn entries(&mut self) -> Result<Vec<Uuid>, Why> {
        self.skip_tags()?;
        let mut left = self.decoder.array().map_err(malformed)?;
        let mut entries = Vec::new();
        while self.more(&mut left)? {
            if entries.len() >= MAX_ENTRIES {
                return Err((Code::TooMany, format!("at most {MAX_ENTRIES} entries at once")));
            }
            entries.push(self.id()?);
        }
        Ok(entries)
    }

    fn data(&mut self, most: usize) -> Result<Vec<u8>, Why> {
        self.skip_tags()?;
        if matches!(self.kind()?, Type::Bytes | Type::BytesIndef) {
            self.fields.data_form = Some(DataForm::Bytes);
            return self.bytes(most);
        }
        self.fields.data_form = Some(DataForm::Array);
        let mut left = self.decoder.array().map_err(malformed)?;
        let mut data = Vec::new();
        while self.more(&mut left)? {
            if data.len() >= most {
                return Err(too_large(most));
            }
            data.push(self.decoder.u8().map_err(malformed)?);
        }
        Ok(data)
    }

    fn bytes(&mut self, most: usize) -> Result<Vec<u8>, Why> {
        let mut all = Vec::new();
        for bytes in self.decoder.bytes_iter().map_err(malformed)? {
            let bytes = bytes.map_err(malformed)?;
            if all.len() + bytes.len() > most {
                return Err(too_large(most));
            }
            all.extend_from_slice(bytes);
        }
        Ok(all)
    }

    fn text(&mut self) -> Result<String, Why> {
        let mut all = String::new();
        for part in self.decoder.str_iter().map_err(malformed)? {
            all.push_str(part.map_err(malformed)?);
        }
        Ok(all)
    }

    fn kind(&self) -> Result<Type, Why> {
        self.decoder.datatype().map_err(malformed)
    }

    fn skip(&mut self) -> Result<(), Why> {
        self.decoder.skip().map_err(malformed)
    }

    fn skip_tags(&mut self) -> Result<(), Why> {
        while self.kind()? == Type::Tag {
            self.decoder.tag().map_err(malformed)?;
        }
        Ok(())
    }

    /// Whether there is one more of a map or an array; its end is taken.
    fn more(&mut self, left: &mut Option<u64>) -> Result<bool, Why> {
        match left {
            Some(0) => Ok(false),
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None if self.kind()? == Type::Break => self.end().map(|()| false),
            None => Ok(true),
        }
    }

    fn end(&mut self) -> Result<(), Why> {
        if self.kind()? != Type::Break {
            return Err(malformed("expected one command"));
        }
        self.skip()
    }
}

fn too_large(most: usize) -> Why {
    (Code::TooLarge, format!("at most {most} bytes of data"))
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use minicbor::Encoder;
    use proptest::prelude::*;

    const ID: Uuid = Uuid::from_u128(0x6d1f_8a3e_7f0f_4b5a_9a3a_0d2f_8c5b_1e77);

    fn encode(write: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut Encoder::new(&mut out));
        out
    }

    fn read(message: &[u8]) -> Result<Command, Code> {
        parse(message, 8).map(|parsed| parsed.command).map_err(|refusal| refusal.code)
    }

    /// As the older system's clients write it.
    #[test]
    fn commands_golden() {
        let s = SubscriptionId(ID);
        for (text, expected) in [
            ("a1 69 537562736372696265 a1 6f 737562736372697074696f6e5f6964 50 ID", Command::Subscribe(s)),
            (
                "a1 6b 556e737562736372696265 a1 6f 737562736372697074696f6e5f6964 50 ID",
                Command::Unsubscribe(s),
            ),
            ("a1 6b 4765744c6f67496e646578 a1 66 6c6f675f6964 50 ID", Command::GetLogIndex(s)),
            (
                "a1 6d 4765744c6f67456e7472696573 a2 66 6c6f675f6964 50 ID 67 656e7472696573 81 50 ID",
                Command::GetLogEntries(s, vec![ID]),
            ),
            (
                "a1 71 5375626d69745075626c69636174696f6e a2 6f 737562736372697074696f6e5f6964 50 ID
                 6a 7375626d697373696f6e 83 01 02 18 ff",
                Command::SubmitPublication(s, vec![1, 2, 255]),
            ),
        ] {
            let text = text.replace("ID", &ID.simple().to_string());
            assert_eq!(read(&hex(&text)), Ok(expected), "{text}");
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        hex::decode(text.split_whitespace().collect::<String>()).unwrap()
    }

    #[test]
    fn other_ways_to_write_it() {
        let s = SubscriptionId(ID);
        let array = encode(|e| {
            e.array(2).unwrap().str("Subscribe").unwrap().array(1).unwrap().bytes(ID.as_bytes()).unwrap();
        });
        let tagged = encode(|e| {
            e.begin_map().unwrap().str("Subscribe").unwrap().begin_map().unwrap();
            e.str("x").unwrap().array(1).unwrap().null().unwrap();
            e.str("subscription_id")
                .unwrap()
                .tag(minicbor::data::Tag::new(37))
                .unwrap()
                .bytes(ID.as_bytes())
                .unwrap();
            e.u8(7).unwrap().bool(true).unwrap().end().unwrap().end().unwrap();
        });
        let text = encode(|e| {
            e.map(1).unwrap().str("Subscribe").unwrap().map(1).unwrap();
            e.str("subscription_id").unwrap().str(&ID.to_string()).unwrap();
        });
        for message in [&array, &tagged, &text] {
            assert_eq!(read(message), Ok(Command::Subscribe(s)));
        }
        assert_eq!(parse(&text, 8).unwrap().ids, IdForm::Text);
        let bytes = encode(|e| {
            e.map(1).unwrap().str("SubmitPublication").unwrap().map(2).unwrap();
            e.str("submission").unwrap().bytes(b"ab").unwrap();
            e.str("subscription_id").unwrap().bytes(ID.as_bytes()).unwrap();
        });
        let parsed = parse(&bytes, 8).unwrap();
        assert_eq!(parsed.command, Command::SubmitPublication(s, b"ab".to_vec()));
        assert_eq!(parsed.data, Some(DataForm::Bytes));
    }

    fn submission(data: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
        encode(|e| {
            e.map(1).unwrap().str("SubmitPublication").unwrap().map(2).unwrap();
            e.str("subscription_id").unwrap().bytes(ID.as_bytes()).unwrap().str("submission").unwrap();
            data(e);
        })
    }

    fn queue(group: &str) -> Vec<u8> {
        encode(|e| {
            e.map(1).unwrap().str("SubscribeQueue").unwrap().array(2).unwrap();
            e.bytes(ID.as_bytes()).unwrap().str(group).unwrap();
        })
    }

    #[test]
    fn what_is_wrong_is_named() {
        let ack = encode(|e| {
            e.map(1).unwrap().str("Ack").unwrap().map(0).unwrap();
        });
        let mut trailing = queue("g");
        trailing.push(0xf6);
        for (message, code) in [
            (vec![], Code::Malformed),
            (vec![0xf6], Code::Malformed),
            (vec![0xff], Code::Malformed),
            (vec![0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Code::Malformed),
            (ack, Code::Malformed),
            (trailing, Code::Malformed),
            (queue(""), Code::InvalidGroup),
            (queue(&"x".repeat(65)), Code::InvalidGroup),
            (submission(|e| drop(e.bytes(&[0; 9]))), Code::TooLarge),
            (submission(|e| drop(e.encode([0_u32; 9]))), Code::TooLarge),
            (submission(|e| drop(e.encode([256_u32]))), Code::Malformed),
            (submission(|e| drop(e.str("x"))), Code::Malformed),
        ] {
            assert_eq!(read(&message), Err(code), "{message:02x?}");
        }
        assert_eq!(parse(&submission(|e| drop(e.bytes(&[0; 9]))), 8).unwrap_err().about, Some(ID));
        assert!(read(&queue(&"x".repeat(64))).is_ok());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, 64);
        }

        #[test]
        fn one_changed_byte(at in 0_usize..60, byte: u8) {
            let mut message = submission(|e| drop(e.encode([1_u8, 2, 3])));
            let at = at % message.len();
            message[at] = byte;
            let _ = parse(&message, 64);
        }
    }

    #[test]
    fn depth_costs_nothing() {
        for nested in [vec![0x81; 100_000], vec![0x9f; 100_000], vec![0xc1; 100_000]] {
            let message = [
                &encode(|e| {
                    e.map(1).unwrap().str("Ack").unwrap().map(1).unwrap().str("x").unwrap();
                })[..],
                &nested,
            ]
            .concat();
            assert_eq!(read(&message), Err(Code::Malformed));
        }
    }
}
