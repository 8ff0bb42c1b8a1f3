//! A stream of server-sent events, or a WebSocket after its handshake, parsed only as far as a viewer of a bench looks: the
//! status, the last id, and of each event the number and the time that its publisher put into it. Pure.

/// A head or a line of ours is far shorter.
const MAX_LINE_BYTES: usize = 16 << 10;
const MAX_CHUNK_BYTES: usize = 1 << 24;
/// What holds the number: of an event of the queue, and of one of a version.
const NUMBERS: [&[u8]; 2] = [b"\"queued\":", b"\"id\":"];
const SUBSCRIBED: &[u8] = b"{\"type\":\"subscribed\"";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The head is complete.
    Status(u16),
    Event {
        number: u64,
        at_us: u64,
    },
    /// What a WebSocket asked for is granted.
    Subscribed,
    /// The server says that nothing more comes.
    End,
}

/// Of frames, which no server masks.
pub(super) const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stream of events: {0}")]
pub(super) struct Malformed(String);

/// Where a viewer resumes: short enough to be kept in place, for a hundred thousand of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Id {
    bytes: [u8; 31],
    length: u8,
}

#[derive(Debug, Default)]
pub(super) struct Parser {
    framing: Framing,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    id: Id,
}

#[derive(Debug, Default)]
enum Framing {
    #[default]
    StatusLine,
    Headers {
        status: u16,
        chunked: bool,
    },
    /// Until the connection ends.
    Plain,
    ChunkSize {
        size: usize,
        digits: u8,
    },
    Chunk(usize),
    ChunkEnd,
    /// Of a WebSocket.
    Frames,
}

impl Parser {
    /// For a new connection of the same viewer.
    pub(super) fn restart(&mut self) {
        self.framing = Framing::StatusLine;
        self.line = Vec::new();
    }

    pub(super) fn id(&self) -> &[u8] {
        &self.id.bytes[..usize::from(self.id.length)]
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], mut see: impl FnMut(Seen)) -> Result<(), Malformed> {
        while let Some(first) = bytes.first() {
            match &mut self.framing {
                Framing::StatusLine | Framing::Headers { .. } | Framing::Plain => {
                    self.line_of(&mut bytes, &mut see)?;
                }
                Framing::ChunkSize { size, digits } => {
                    match (*first, char::from(*first).to_digit(16)) {
                        (_, Some(digit)) => (*size, *digits) = (*size * 16 + digit as usize, *digits + 1),
                        (b'\r', _) => {}
                        (b'\n', _) if *size == 0 && *digits > 0 => {
                            see(Seen::End);
                            self.framing = Framing::Plain;
                        }
                        (b'\n', _) => self.framing = Framing::Chunk(*size),
                        _ => return Err(malformed(bytes)),
                    }
                    if matches!(&self.framing, Framing::ChunkSize { size, .. } if *size > MAX_CHUNK_BYTES) {
                        return Err(malformed(bytes));
                    }
                    bytes = &bytes[1..];
                }
                Framing::Chunk(left) => {
                    let count = bytes.len().min(*left);
                    let left = *left - count;
                    let mut data = &bytes[..count];
                    while !data.is_empty() {
                        self.line_of(&mut data, &mut see)?;
                    }
                    bytes = &bytes[count..];
                    self.framing = if left == 0 { Framing::ChunkEnd } else { Framing::Chunk(left) };
                }
                Framing::Frames => {
                    self.line.extend_from_slice(std::mem::take(&mut bytes));
                    self.frames(&mut see)?;
                }
                Framing::ChunkEnd => {
                    if *first == b'\n' {
                        self.framing = Framing::ChunkSize { size: 0, digits: 0 };
                    }
                    bytes = &bytes[1..];
                }
            }
        }
        Ok(())
    }

    /// Takes a line off the front, or keeps what there is of it.
    fn line_of(&mut self, bytes: &mut &[u8], see: &mut impl FnMut(Seen)) -> Result<(), Malformed> {
        let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
        let (line, rest) = bytes.split_at(end);
        *bytes = rest;
        let complete = line.ends_with(b"\n");
        if complete && self.line.is_empty() {
            return self.take(line.trim_ascii_end(), see);
        }
        self.line.extend_from_slice(line);
        if self.line.len() > MAX_LINE_BYTES {
            return Err(malformed(&self.line));
        }
        if complete {
            let line = std::mem::take(&mut self.line);
            return self.take(line.trim_ascii_end(), see);
        }
        Ok(())
    }

    fn take(&mut self, line: &[u8], see: &mut impl FnMut(Seen)) -> Result<(), Malformed> {
        match &mut self.framing {
            Framing::StatusLine => {
                let code = line.strip_prefix(b"HTTP/1.1 ").and_then(number);
                let status = code.and_then(|code| code.try_into().ok()).ok_or_else(|| malformed(line))?;
                self.framing = Framing::Headers { status, chunked: false };
            }
            Framing::Headers { status, chunked } if line.is_empty() => {
                see(Seen::Status(*status));
                self.framing = match (*status, *chunked) {
                    (101, _) => Framing::Frames,
                    (_, true) => Framing::ChunkSize { size: 0, digits: 0 },
                    (_, false) => Framing::Plain,
                };
            }
            Framing::Headers { chunked, .. } => {
                *chunked |= line.eq_ignore_ascii_case(b"transfer-encoding: chunked");
            }
            _ => self.field(line, see)?,
        }
        Ok(())
    }

    /// Takes whole frames off the front of what came.
    fn frames(&mut self, see: &mut impl FnMut(Seen)) -> Result<(), Malformed> {
        let (came, mut rest) = (std::mem::take(&mut self.line), 0);
        while let Some((kind, payload, length)) = frame(&came[rest..]) {
            match kind {
                TEXT if payload.starts_with(SUBSCRIBED) => see(Seen::Subscribed),
                TEXT => data(payload, see),
                CLOSE => see(Seen::End),
                _ => {}
            }
            rest += length;
        }
        let left = &came[rest..];
        if left.len() > MAX_CHUNK_BYTES {
            return Err(malformed(left));
        }
        self.line = left.to_vec();
        Ok(())
    }

    /// A line of an event.
    fn field(&mut self, line: &[u8], see: &mut impl FnMut(Seen)) -> Result<(), Malformed> {
        if let Some(text) = line.strip_prefix(b"data:") {
            data(text, see);
        } else if let Some(id) = line.strip_prefix(b"id:") {
            let id = id.trim_ascii_start();
            let into = self.id.bytes.get_mut(..id.len()).ok_or_else(|| malformed(line))?;
            into.copy_from_slice(id);
            self.id.length = u8::try_from(id.len()).map_err(|_| malformed(line))?;
        }
        Ok(())
    }
}

fn data(text: &[u8], see: &mut impl FnMut(Seen)) {
    let mut numbers = NUMBERS.iter().filter_map(|key| Some(&text[find(text, key)? + key.len()..]));
    let stamp = text.iter().rposition(|byte| *byte == b':').map(|colon| &text[colon + 1..]);
    // Other events, such as one that tells of a restart, have no number.
    if let (Some(value), Some(at_us)) = (numbers.next().and_then(number), stamp.and_then(number)) {
        see(Seen::Event { number: value, at_us });
    }
}

/// The first frame, if it is there: its first byte, its payload, and its length in all.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (kind, length) = (*bytes.first()?, *bytes.get(1)?);
    let (length, from) = match length {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let end = length.checked_add(from)?;
    Some((kind, bytes.get(from..end)?, end))
}

fn malformed(bytes: &[u8]) -> Malformed {
    Malformed(bytes[..bytes.len().min(200)].escape_ascii().to_string())
}

/// The digits that the text begins with.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    let mut value = None;
    for digit in digits {
        value = Some(value.unwrap_or(0_u64).checked_mul(10)?.checked_add(u64::from(digit - b'0'))?);
    }
    value
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "HTTP/1.1 200 OK\r\nserver: x\r\n\r\n: hi\n\nid: 812\nevent: queue\n\
        data: {\"type\":\"queue\",\"queued\":4,\"running\":0,\"at_ms\":77}\n\nid: 1:0\n\n";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        6\r\nid: 8\n\r\n2b\r\ndata: {\"type\":\"version\",\"id\":12,\"at_ms\":345\r\n3\r\n6}\n\r\n0\r\n\r\n";

    fn parse(text: &str, step: usize) -> (Vec<Seen>, Parser) {
        let (mut parser, mut seen) = (Parser::default(), Vec::new());
        for part in text.as_bytes().chunks(step) {
            parser.feed(part, |one| seen.push(one)).unwrap();
        }
        (seen, parser)
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        for step in 1..PLAIN.len() {
            let (seen, parser) = parse(PLAIN, step);
            assert_eq!(seen, [Seen::Status(200), Seen::Event { number: 4, at_us: 77 }], "{step}");
            assert_eq!(parser.id(), b"1:0");
        }
        for step in 1..CHUNKED.len() {
            let (seen, parser) = parse(CHUNKED, step);
            let event = Seen::Event { number: 12, at_us: 3456 };
            assert_eq!(seen, [Seen::Status(200), event, Seen::End], "{step}");
            assert_eq!(parser.id(), b"8");
        }
    }

    #[test]
    fn frames_are_the_same_however_they_are_cut() {
        let event = br#"{"type":"event","id":"9","data":{"type":"queue","queued":4,"at_ms":77}}"#;
        let subscribed = br#"{"type":"subscribed","topic":"queue","id":"8"}"#;
        let long = [&event[..], &[b' '; 200]].concat();
        let mut bytes = b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\n\r\n".to_vec();
        for payload in [&subscribed[..], event] {
            bytes.extend([TEXT, u8::try_from(payload.len()).unwrap()]);
            bytes.extend(payload);
        }
        bytes.extend([TEXT, 126, 1, u8::try_from(long.len() - 256).unwrap()]);
        bytes.extend(long);
        bytes.extend([0x89, 1, b'x', CLOSE, 0]);
        let event = Seen::Event { number: 4, at_us: 77 };
        for step in 1..bytes.len() {
            let (mut parser, mut seen) = (Parser::default(), Vec::new());
            for part in bytes.chunks(step) {
                parser.feed(part, |one| seen.push(one)).unwrap();
            }
            assert_eq!(seen, [Seen::Status(101), Seen::Subscribed, event, event, Seen::End], "{step}");
        }
    }

    #[test]
    fn a_new_connection_keeps_the_id() {
        let (_, mut parser) = parse(CHUNKED, 7);
        parser.restart();
        let mut seen = Vec::new();
        parser.feed(b"HTTP/1.1 503 No\r\n\r\nfull", |one| seen.push(one)).unwrap();
        assert_eq!((seen, parser.id()), (vec![Seen::Status(503)], &b"8"[..]));
    }

    #[test]
    fn what_is_no_stream_is_an_error() {
        for bad in [
            "SSH-2.0-x\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffff",
            "HTTP/1.1 200 OK\r\n\r\nid: 01234567890123456789012345678901\n",
        ] {
            assert!(Parser::default().feed(bad.as_bytes(), |_| {}).is_err(), "{bad}");
        }
    }
}
