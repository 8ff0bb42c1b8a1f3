//! Objects, read in constant memory to their end.

use anyhow::Context as _;
use cratemill_protocol::Sha256Hex;
use cratemill_store::objects::{Body, Error, Objects};
use flate2::write::GzDecoder;
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// Of one object: a connection may break at any time, and must not cost the whole audit.
const TRIES: u32 = 3;

/// Something that takes an object piece by piece.
trait Reader: Default {
    type End;
    /// False: it has seen enough.
    fn take(&mut self, piece: &[u8]) -> bool;
    fn end(self) -> Self::End;
}

/// Its length and digest; none if there is no such object.
pub(super) async fn digest(objects: &Objects, key: &str) -> anyhow::Result<Option<(u64, Sha256Hex)>> {
    read::<Digested>(objects, key).await
}

/// How long it is unpacked, or why it cannot be; none if there is no such object.
pub(super) async fn unpacked_length(
    objects: &Objects,
    key: &str,
) -> anyhow::Result<Option<Result<u64, String>>> {
    read::<Unpacked>(objects, key).await
}

async fn read<R: Reader>(objects: &Objects, key: &str) -> anyhow::Result<Option<R::End>> {
    let mut tries = 1;
    loop {
        let error = match objects.get(key, None).await {
            Ok(object) => match drain(object.body, R::default()).await {
                Ok(end) => return Ok(Some(end)),
                Err(error) => error,
            },
            Err(Error::NotFound(_)) => return Ok(None),
            Err(error) => error.into(),
        };
        if tries == TRIES {
            return Err(error).with_context(|| format!("cannot read the object {key}"));
        }
        tries += 1;
    }
}

async fn drain<R: Reader>(mut body: Body, mut reader: R) -> anyhow::Result<R::End> {
    while let Some(piece) = body.next().await {
        if !reader.take(&piece?) {
            break;
        }
    }
    Ok(reader.end())
}

#[derive(Default)]
struct Digested {
    hasher: Sha256,
    length: u64,
}

impl Reader for Digested {
    type End = (u64, Sha256Hex);

    fn take(&mut self, piece: &[u8]) -> bool {
        self.hasher.update(piece);
        self.length += piece.len() as u64;
        true
    }

    fn end(self) -> Self::End {
        (self.length, Sha256Hex::from_hasher(self.hasher))
    }
}

struct Unpacked {
    gzip: GzDecoder<Count>,
    failure: Option<String>,
}

impl Default for Unpacked {
    fn default() -> Self {
        Self { gzip: GzDecoder::new(Count(0)), failure: None }
    }
}

impl Reader for Unpacked {
    type End = Result<u64, String>;

    fn take(&mut self, piece: &[u8]) -> bool {
        self.failure = self.gzip.write_all(piece).err().map(|error| error.to_string());
        self.failure.is_none()
    }

    fn end(self) -> Self::End {
        match self.failure {
            Some(why) => Err(why),
            None => self.gzip.finish().map(|count| count.0).map_err(|error| error.to_string()),
        }
    }
}

/// Counts what is written to it.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
