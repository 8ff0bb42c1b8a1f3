//! Crates made by the tests.

use flate2::{Compression, write::GzEncoder};
use tar::{Builder, EntryType, Header};

/// A binary crate `demo` 0.1.0 with these files besides its manifest.
pub(crate) fn demo(files: &[(&str, &str)]) -> Vec<u8> {
    let manifest = "[package]\nname = \"demo\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
    let mut all = vec![("Cargo.toml", manifest)];
    all.extend_from_slice(files);
    package("demo-0.1.0", &all)
}

pub(crate) const HELLO: (&str, &str) = ("src/main.rs", "fn main() { println!(\"hello\"); }\n");

/// A build script with this body beside a harmless binary.
pub(crate) fn with_build_script(body: &str) -> Vec<u8> {
    let script = format!("use std::io::Write;\nfn main() {{\n_ = std::io::stdout().flush();\n{body}\n}}\n");
    demo(&[HELLO, ("build.rs", &script)])
}

pub(crate) fn package(root: &str, files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Archive::default();
    for (path, text) in files {
        archive.entry(EntryType::Regular, &format!("{root}/{path}"), text.as_bytes());
    }
    archive.finish()
}

/// An archive of any entries, those no honest tool would write included.
pub(crate) struct Archive(Builder<GzEncoder<Vec<u8>>>);

impl Default for Archive {
    fn default() -> Self {
        Self(Builder::new(GzEncoder::new(Vec::new(), Compression::fast())))
    }
}

impl Archive {
    pub(crate) fn entry(&mut self, kind: EntryType, path: &str, content: &[u8]) -> &mut Self {
        self.linking(kind, path, "", content)
    }

    pub(crate) fn linking(&mut self, kind: EntryType, path: &str, to: &str, content: &[u8]) -> &mut Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_size(content.len() as u64);
        // Not through the checks of an honest writer.
        let bytes = header.as_mut_bytes();
        bytes[..path.len()].copy_from_slice(path.as_bytes());
        bytes[157..157 + to.len()].copy_from_slice(to.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap().finish().unwrap()
    }
}
