//! Frames of a WebSocket, as a server reads and writes them. Pure.
//!
//! Nothing is kept between frames that are whole: a connection that waits has no buffer.

use bytes::{BufMut as _, Bytes, BytesMut};
use std::io::Cursor;
use tungstenite::protocol::frame::{
    CloseFrame, Frame, FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

/// What is taken of a client.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Bytes of a message.
    pub max_message: usize,
    /// Frames of one message: nobody counts them but here.
    pub max_frames: u16,
    /// Messages may be binary; then one that is too big is skipped, and does not end the connection.
    pub binary: bool,
}

/// What a client of ours has to say is short: the longest topic, the longest id and some air.
pub const NATIVE: Rules = Rules { max_message: 8 * 1024, max_frames: 64, binary: false };
/// Going away; another node, or this one a moment later, goes on.
pub const RESTART: u16 = 1012;
pub const TRY_AGAIN: u16 = 1013;
/// For those who say too much.
pub const POLICY: u16 = 1008;
/// A reason in a close frame.
const MAX_REASON: usize = 120;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    Text(String),
    Binary(Vec<u8>),
    /// A message was longer than is taken: it is left out.
    TooBig,
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
    frames: u16,
    /// It is text.
    text: bool,
    /// The message is too big: what comes of it is left out.
    too_big: bool,
    /// So much of a frame, which is the last of its message or not.
    skip: Option<(u64, bool)>,
}

enum Framed {
    /// Not whole yet.
    Nothing,
    Frame(FrameHeader, Vec<u8>),
    /// Of a message that is too big.
    Skipped,
}

impl Inbound {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.message.is_none() && self.skip.is_none() && !self.too_big
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that wait for more.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.message.as_ref().map_or(0, Vec::len)
    }

    /// The next thing that is whole.
    pub fn pop(&mut self, rules: &Rules) -> Result<Option<Incoming>, Fault> {
        loop {
            if let Some((left, is_final)) = self.skip.take() {
                let here = self.bytes.len() - self.taken;
                let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(here);
                self.taken += skipped;
                let left = left - skipped as u64;
                if left > 0 {
                    self.skip = Some((left, is_final));
                    self.give_back();
                    return Ok(None);
                }
                if is_final {
                    (self.too_big, self.frames) = (false, 0);
                    return Ok(Some(Incoming::TooBig));
                }
            }
            match self.frame(rules)? {
                Framed::Nothing => {
                    self.give_back();
                    return Ok(None);
                }
                Framed::Skipped => {}
                Framed::Frame(header, payload) => match header.opcode {
                    OpCode::Control(control) => return Self::control(control, payload),
                    OpCode::Data(data) => {
                        if let Some(message) = self.data(data, header.is_final, payload, rules)? {
                            return Ok(Some(message));
                        }
                    }
                },
            }
        }
    }

    /// Of the bytes what was taken.
    fn give_back(&mut self) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }

    fn frame(&mut self, rules: &Rules) -> Result<Framed, Fault> {
        let bytes = &self.bytes[self.taken..];
        let mut cursor = Cursor::new(bytes);
        let parsed =
            FrameHeader::parse(&mut cursor).map_err(|_| protocol("a frame with an unknown opcode"))?;
        let Some((header, length)) = parsed else { return Ok(Framed::Nothing) };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(protocol("no extension was agreed on"));
        }
        let Some(mask) = header.mask else { return Err(protocol("frames of a client are masked")) };
        if matches!(header.opcode, OpCode::Control(_)) && (length > 125 || !header.is_final) {
            return Err(protocol("a control frame is short, and in one piece"));
        }
        let start = usize::try_from(cursor.position()).map_err(|_| TOO_BIG)?;
        if let OpCode::Data(data) = header.opcode {
            let before = self.message.as_ref().map_or(0, Vec::len) as u64;
            if self.too_big || before.saturating_add(length) > rules.max_message as u64 {
                if !rules.binary {
                    return Err(TOO_BIG);
                }
                let goes_on = self.too_big || self.message.is_some();
                Self::check_order(data, goes_on)?;
                (self.too_big, self.message) = (true, None);
                self.taken += start;
                self.skip = Some((length, header.is_final));
                return Ok(Framed::Skipped);
            }
        }
        let length = usize::try_from(length).map_err(|_| TOO_BIG)?;
        let Some(payload) = bytes.get(start..start + length) else { return Ok(Framed::Nothing) };
        let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        self.taken += start + length;
        Ok(Framed::Frame(header, payload))
    }

    /// Whether such a frame may come while a message goes on, or none does.
    fn check_order(data: Data, goes_on: bool) -> Result<(), Fault> {
        match (data, goes_on) {
            (Data::Text | Data::Binary, false) | (Data::Continue, true) => Ok(()),
            (Data::Continue, false) => Err(protocol("nothing goes on here")),
            (Data::Text | Data::Binary, true) => Err(protocol("the message before has no end")),
            (Data::Reserved(_), _) => Err(protocol("a frame with an unknown opcode")),
        }
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
    fn data(
        &mut self,
        data: Data,
        is_final: bool,
        payload: Vec<u8>,
        rules: &Rules,
    ) -> Result<Option<Incoming>, Fault> {
        Self::check_order(data, self.message.is_some())?;
        if data == Data::Binary && !rules.binary {
            return Err(NO_BINARY);
        }
        let message = match self.message.take() {
            None => {
                self.text = data == Data::Text;
                payload
            }
            Some(mut message) => {
                message.extend_from_slice(&payload);
                message
            }
        };
        self.frames += 1;
        if !is_final {
            self.message = Some(message);
            return if self.frames < rules.max_frames { Ok(None) } else { Err(TOO_MANY) };
        }
        self.frames = 0;
        if self.text {
            String::from_utf8(message).map(|text| Some(Incoming::Text(text))).map_err(|_| NOT_TEXT)
        } else {
            Ok(Some(Incoming::Binary(message)))
        }
    }
}

/// In a frame of its own.
pub fn put_binary(message: &[u8], out: &mut BytesMut) {
    put(Data::Binary, message, out);
}

pub fn put_text(text: &[u8], out: &mut BytesMut) {
    put(Data::Text, text, out);
}

/// A piece of a binary message.
pub fn put_piece(is_first: bool, is_last: bool, piece: &[u8], out: &mut BytesMut) {
    let data = if is_first { Data::Binary } else { Data::Continue };
    put_frame(data, is_last, piece, out);
}

fn put(data: Data, payload: &[u8], out: &mut BytesMut) {
    put_frame(data, true, payload, out);
}

fn put_frame(data: Data, is_final: bool, payload: &[u8], out: &mut BytesMut) {
    let header = FrameHeader { is_final, opcode: OpCode::Data(data), ..FrameHeader::default() };
    // Writing to memory cannot fail.
    let _ = header.format(payload.len() as u64, &mut out.writer());
    out.put_slice(payload);
}

/// Without a payload.
pub fn ping() -> Bytes {
    Bytes::from_static(b"\x89\x00")
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
        while let Some(incoming) = inbound.pop(&NATIVE)? {
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
        let long = "x".repeat(NATIVE.max_message + 1);
        let half = frame(OpCode::Data(Data::Text), false, "x".repeat(NATIVE.max_message).as_bytes());
        let pieces = [
            frame(OpCode::Data(Data::Text), false, b"x"),
            frame(OpCode::Data(Data::Continue), false, b"").repeat(NATIVE.max_frames.into()),
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

    const BINARY: Rules = Rules { max_message: 10, max_frames: 8, binary: true };

    #[test]
    fn where_binary_is_taken_what_is_too_big_is_left_out() {
        let binary = |is_final, payload: &[u8]| frame(OpCode::Data(Data::Binary), is_final, payload);
        let more = |is_final, payload: &[u8]| frame(OpCode::Data(Data::Continue), is_final, payload);
        let bytes = [
            binary(true, b"first"),
            binary(true, &[0; 300]),
            binary(false, b"12345"),
            more(false, &vec![0; 70_000]),
            frame(OpCode::Control(Control::Ping), true, b"p"),
            more(false, b""),
            more(true, b"x"),
            binary(false, b"12345"),
            more(true, b"67890"),
            text("last"),
        ];
        let expected = [
            Incoming::Binary(b"first".to_vec()),
            Incoming::TooBig,
            Incoming::Ping(b"p".to_vec()),
            Incoming::TooBig,
            Incoming::Binary(b"1234567890".to_vec()),
            Incoming::Text("last".into()),
        ];
        for step in [1, 7, 1_000, 100_000] {
            let (mut inbound, mut seen) = (Inbound::default(), Vec::new());
            for chunk in bytes.concat().chunks(step) {
                inbound.feed(chunk);
                while let Some(incoming) = inbound.pop(&BINARY).unwrap() {
                    seen.push(incoming);
                }
                assert!(inbound.len() <= 10 + 14 + step, "nothing is kept of what is too big");
            }
            assert_eq!(seen, expected);
            assert!(inbound.is_empty());
        }
        let mut inbound = Inbound::default();
        inbound.feed(&[binary(false, &[0; 11]), binary(true, b"")].concat());
        assert_eq!(inbound.pop(&BINARY).unwrap_err().code, 1002);
    }

    #[test]
    fn what_is_written_golden() {
        let mut out = BytesMut::new();
        put_text(b"{}", &mut out);
        assert_eq!(out, b"\x81\x02{}"[..]);
        put_binary(b"x", &mut out);
        assert_eq!(out, b"\x81\x02{}\x82\x01x"[..]);
        let mut out = BytesMut::new();
        for (first, last) in [(true, false), (false, false), (false, true)] {
            put_piece(first, last, b"x", &mut out);
        }
        assert_eq!(out, b"\x02\x01x\x00\x01x\x80\x01x"[..]);
        assert_eq!(close(1008, "no"), b"\x88\x04\x03\xf0no"[..]);
        assert_eq!(close_without_code(), b"\x88\x00"[..]);
        assert_eq!(pong(vec![7]), b"\x8a\x01\x07"[..]);
        assert!(close(1008, &"ä".repeat(100)).len() <= 127);
    }
}
