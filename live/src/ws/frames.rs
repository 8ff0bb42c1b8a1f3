//! Frames of a WebSocket, as a server reads and writes them. Pure.
//!
//! Nothing is kept between frames that are whole: a connection that waits has no buffer.

use bytes::{BufMut as _, Bytes, BytesMut};
use std::io::Cursor;
use tungstenite::protocol::frame::{
    CloseFrame, Frame, FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

/// What a client has to say is short: the longest topic, the longest id and some air.
pub const MAX_MESSAGE: usize = 8 * 1024;
/// Going away; another node, or this one a moment later, goes on.
pub const RESTART: u16 = 1012;
pub const TRY_AGAIN: u16 = 1013;
/// For those who say too much.
pub const POLICY: u16 = 1008;
/// Frames of one message: nobody counts them but here.
const MAX_FRAMES: u8 = 64;
/// A reason in a close frame.
const MAX_REASON: usize = 120;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    Text(String),
    Ping(Vec<u8>),
    /// Nobody asked, and it is allowed.
    Pong,
    /// The peer says goodbye; the code goes back to it.
    Close(Option<u16>),
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub code: u16,
    pub reason: &'static str,
}

const PROTOCOL: u16 = 1002;
const NO_BINARY: Fault = Fault { code: 1003, reason: "messages are JSON, as text" };
const NOT_TEXT: Fault = Fault { code: 1007, reason: "a text message is not UTF-8" };
const TOO_BIG: Fault = Fault { code: 1009, reason: "a message is longer than 8 KiB" };
const TOO_MANY: Fault = Fault { code: POLICY, reason: "a message in too many pieces" };

fn protocol(reason: &'static str) -> Fault {
    Fault { code: PROTOCOL, reason }
}

/// What came of a frame or a message that is not whole yet.
#[derive(Debug, Default)]
pub struct Inbound {
    bytes: Vec<u8>,
    /// How many of them were taken.
    taken: usize,
    /// The frames of a message before its last one,
    message: Option<Vec<u8>>,
    /// and how many they are.
    frames: u8,
}

impl Inbound {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.message.is_none()
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next thing that is whole.
    pub fn pop(&mut self) -> Result<Option<Incoming>, Fault> {
        loop {
            let Some((header, payload)) = self.frame()? else {
                self.bytes.drain(..std::mem::take(&mut self.taken));
                if self.bytes.is_empty() {
                    self.bytes = Vec::new();
                }
                return Ok(None);
            };
            match header.opcode {
                OpCode::Control(control) => return Self::control(control, payload),
                OpCode::Data(data) => {
                    if let Some(text) = self.data(data, header.is_final, payload)? {
                        return Ok(Some(Incoming::Text(text)));
                    }
                }
            }
        }
    }

    fn frame(&mut self) -> Result<Option<(FrameHeader, Vec<u8>)>, Fault> {
        let bytes = &self.bytes[self.taken..];
        let mut cursor = Cursor::new(bytes);
        let parsed =
            FrameHeader::parse(&mut cursor).map_err(|_| protocol("a frame with an unknown opcode"))?;
        let Some((header, length)) = parsed else { return Ok(None) };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(protocol("no extension was agreed on"));
        }
        let Some(mask) = header.mask else { return Err(protocol("frames of a client are masked")) };
        if matches!(header.opcode, OpCode::Control(_)) && (length > 125 || !header.is_final) {
            return Err(protocol("a control frame is short, and in one piece"));
        }
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_MESSAGE).ok_or(TOO_BIG)?;
        let start = usize::try_from(cursor.position()).map_err(|_| TOO_BIG)?;
        let Some(payload) = bytes.get(start..start + length) else { return Ok(None) };
        let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        self.taken += start + length;
        Ok(Some((header, payload)))
    }

    fn control(control: Control, payload: Vec<u8>) -> Result<Option<Incoming>, Fault> {
        match control {
            Control::Ping => Ok(Some(Incoming::Ping(payload))),
            Control::Pong => Ok(Some(Incoming::Pong)),
            Control::Close => match *payload.as_slice() {
                [] => Ok(Some(Incoming::Close(None))),
                [high, low, ref reason @ ..] => {
                    let code = u16::from_be_bytes([high, low]);
                    if !CloseCode::from(code).is_allowed() || std::str::from_utf8(reason).is_err() {
                        return Err(protocol("a close frame with a bad code or reason"));
                    }
                    Ok(Some(Incoming::Close(Some(code))))
                }
                [_] => Err(protocol("a close frame with half a code")),
            },
            Control::Reserved(_) => Err(protocol("a frame with an unknown opcode")),
        }
    }

    /// A whole message, once its last frame is there.
    fn data(&mut self, data: Data, is_final: bool, payload: Vec<u8>) -> Result<Option<String>, Fault> {
        let message = match (data, self.message.take()) {
            (Data::Text, None) => payload,
            (Data::Continue, Some(mut message)) => {
                if message.len() + payload.len() > MAX_MESSAGE {
                    return Err(TOO_BIG);
                }
                message.extend_from_slice(&payload);
                message
            }
            (Data::Binary, None) => return Err(NO_BINARY),
            (Data::Continue, None) => return Err(protocol("nothing goes on here")),
            (Data::Text | Data::Binary, Some(_)) => return Err(protocol("the message before has no end")),
            (Data::Reserved(_), _) => return Err(protocol("a frame with an unknown opcode")),
        };
        self.frames += 1;
        if !is_final {
            self.message = Some(message);
            return if self.frames < MAX_FRAMES { Ok(None) } else { Err(TOO_MANY) };
        }
        self.frames = 0;
        String::from_utf8(message).map(Some).map_err(|_| NOT_TEXT)
    }
}

pub fn put_text(text: &[u8], out: &mut BytesMut) {
    let header = FrameHeader { is_final: true, opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    // Writing to memory cannot fail.
    let _ = header.format(text.len() as u64, &mut out.writer());
    out.put_slice(text);
}

pub fn pong(payload: Vec<u8>) -> Bytes {
    bytes_of(Frame::pong(payload))
}

pub fn close(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    bytes_of(Frame::close(Some(CloseFrame { code: code.into(), reason: reason[..end].into() })))
}

/// The answer to a close frame without a code.
pub fn close_without_code() -> Bytes {
    bytes_of(Frame::close(None))
}

fn bytes_of(frame: Frame) -> Bytes {
    let mut out = BytesMut::new();
    let _ = frame.format(&mut (&mut out).writer());
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    fn frame(opcode: OpCode, is_final: bool, payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader { is_final, opcode, mask: Some(MASK), ..FrameHeader::default() };
        let mut out = Vec::new();
        header.format(payload.len() as u64, &mut out).unwrap();
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    fn text(payload: &str) -> Vec<u8> {
        frame(OpCode::Data(Data::Text), true, payload.as_bytes())
    }

    fn all(inbound: &mut Inbound) -> Result<Vec<Incoming>, Fault> {
        let mut all = Vec::new();
        while let Some(incoming) = inbound.pop()? {
            all.push(incoming);
        }
        Ok(all)
    }

    fn fault(bytes: &[u8]) -> u16 {
        let mut inbound = Inbound::default();
        inbound.feed(bytes);
        all(&mut inbound).unwrap_err().code
    }

    proptest! {
        /// However the bytes are cut.
        #[test]
        fn messages_come_whole_and_in_order(
            messages in prop::collection::vec(("\\PC{0,300}", 1_usize..5, any::<bool>()), 1..8), step in 1_usize..50,
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (message, pieces, ping) in &messages {
                let size = (message.len() / pieces).max(1);
                let chunks: Vec<&[u8]> = if message.is_empty() { vec![b""] } else { message.as_bytes().chunks(size).collect() };
                for (i, chunk) in chunks.iter().enumerate() {
                    let opcode = if i == 0 { Data::Text } else { Data::Continue };
                    bytes.extend(frame(OpCode::Data(opcode), i + 1 == chunks.len(), chunk));
                    // Control frames may stand between the frames of a message.
                    if *ping {
                        bytes.extend(frame(OpCode::Control(Control::Ping), true, b"p"));
                        expected.push(Incoming::Ping(b"p".to_vec()));
                    }
                    if i + 1 == chunks.len() {
                        let at = expected.len() - usize::from(*ping);
                        expected.insert(at, Incoming::Text(message.clone()));
                    }
                }
            }
            let (mut inbound, mut seen) = (Inbound::default(), Vec::new());
            for chunk in bytes.chunks(step) {
                inbound.feed(chunk);
                seen.extend(all(&mut inbound).unwrap());
            }
            prop_assert_eq!(seen, expected);
            prop_assert!(inbound.is_empty());
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), step in 1_usize..50) {
            let mut inbound = Inbound::default();
            for chunk in bytes.chunks(step) {
                inbound.feed(chunk);
                if all(&mut inbound).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_breaks_the_rules_is_told_so() {
        let mut unmasked = Vec::new();
        FrameHeader::default().format(0, &mut unmasked).unwrap();
        let mut reserved = text("x");
        reserved[0] |= 0x40;
        let long = "x".repeat(MAX_MESSAGE + 1);
        let half = frame(OpCode::Data(Data::Text), false, "x".repeat(MAX_MESSAGE).as_bytes());
        let pieces = [
            frame(OpCode::Data(Data::Text), false, b"x"),
            frame(OpCode::Data(Data::Continue), false, b"").repeat(MAX_FRAMES.into()),
        ];
        for (bytes, code) in [
            (pieces.concat(), 1008),
            (unmasked, 1002),
            (reserved, 1002),
            (frame(OpCode::Data(Data::Continue), true, b"x"), 1002),
            ([frame(OpCode::Data(Data::Text), false, b"x"), text("y")].concat(), 1002),
            (frame(OpCode::Control(Control::Ping), true, &[0; 126]), 1002),
            (frame(OpCode::Control(Control::Ping), false, b""), 1002),
            (frame(OpCode::Control(Control::Close), true, &[3]), 1002),
            (frame(OpCode::Control(Control::Close), true, &1005_u16.to_be_bytes()), 1002),
            (frame(OpCode::Data(Data::Binary), true, b"x"), 1003),
            (frame(OpCode::Data(Data::Text), true, b"\xff"), 1007),
            (text(&long), 1009),
            ([half, frame(OpCode::Data(Data::Continue), true, b"x")].concat(), 1009),
        ] {
            assert_eq!(fault(&bytes), code, "{:?}", &bytes[..bytes.len().min(16)]);
        }
    }

    #[test]
    fn what_is_written_golden() {
        let mut out = BytesMut::new();
        put_text(b"{}", &mut out);
        assert_eq!(out, b"\x81\x02{}"[..]);
        assert_eq!(close(1008, "no"), b"\x88\x04\x03\xf0no"[..]);
        assert_eq!(close_without_code(), b"\x88\x00"[..]);
        assert_eq!(pong(vec![7]), b"\x8a\x01\x07"[..]);
        assert!(close(1008, &"ä".repeat(100)).len() <= 127);
    }
}
