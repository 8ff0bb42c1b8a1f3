//! Golden files below `tests/golden/`. `UPDATE_GOLDEN=1` writes them anew; the diff is then what changes on the wire.

use cratemill_protocol::codec::Encoding;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    fmt::{Debug, Write},
    fs,
    path::{Path, PathBuf},
};

/// The golden files of one family of messages.
pub(crate) struct Golden {
    folder: PathBuf,
    update: bool,
    seen: BTreeSet<String>,
}

impl Golden {
    pub(crate) fn open(family: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(family);
        let update = std::env::var_os("UPDATE_GOLDEN").is_some();
        if update {
            fs::create_dir_all(&folder).unwrap();
        }
        Self { folder, update, seen: BTreeSet::new() }
    }

    /// A message of the builder protocol: JSON and MessagePack.
    pub(crate) fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(
        &mut self,
        name: &str,
        message: &T,
    ) {
        let json = serde_json::to_string_pretty(message).unwrap() + "\n";
        let golden = self.text(name, "json", &json);
        assert_eq!(json, golden, "{name}: the JSON has changed");
        assert_eq!(&Encoding::Json.decode::<T>(golden.as_bytes()).unwrap(), message, "{name}");
        let compact: serde_json::Value = serde_json::from_slice(&Encoding::Json.encode(message)).unwrap();
        assert_eq!(compact, serde_json::from_str::<serde_json::Value>(&golden).unwrap(), "{name}");

        let golden = self.bytes(name, &Encoding::MsgPack.encode(message));
        assert_eq!(&Encoding::MsgPack.decode::<T>(&golden).unwrap(), message, "{name}");
    }

    /// Compares with the golden bytes, a hex dump, and gives those back.
    pub(crate) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Vec<u8> {
        let golden = self.text(name, "msgpack.txt", &dump(bytes));
        assert_eq!(dump(bytes), golden, "{name}: the MessagePack has changed");
        let digits: String = golden.chars().filter(char::is_ascii_hexdigit).collect();
        hex::decode(digits).unwrap()
    }

    /// Compares with the golden text itself.
    pub(crate) fn exact(&mut self, name: &str, text: &[u8]) {
        let text = str::from_utf8(text).unwrap();
        assert_eq!(text, self.text(name, "txt", text), "{name}: the text has changed");
    }

    fn text(&mut self, name: &str, ending: &str, now: &str) -> String {
        let file = format!("{name}.{ending}");
        let path = self.folder.join(&file);
        assert!(self.seen.insert(file), "{name} is there twice");
        if self.update {
            fs::write(&path, now).unwrap();
        }
        fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}. Is it new? UPDATE_GOLDEN=1 writes it", path.display())
        })
    }

    /// No golden file without a message.
    pub(crate) fn close(self) {
        let found: BTreeSet<String> = fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(found, self.seen, "files of messages that are gone, or gone files");
    }
}

fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        writeln!(text, "{}", hex::encode(line)).unwrap();
    }
    text
}
