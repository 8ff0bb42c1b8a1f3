//! Answers that are long go in pieces, each when the client has taken some of those before: a node holds a few for each client,
//! whatever the length of a log.

use super::Cbor;
use crate::{
    reactor::{Answer, Who},
    ws::frames,
};
use bytes::BytesMut;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::timeout};

/// What comes whole.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that a client has not taken.
const UNTAKEN: usize = 4;
/// How long it may take for one of them. The reactor gives it up sooner, as a rule.
const PATIENCE: Duration = Duration::from_mins(2);

/// One message, part by part.
pub(super) struct Speech<'a> {
    cbor: &'a Cbor,
    who: Who,
    room: Arc<Semaphore>,
    buffer: Vec<u8>,
    has_begun: bool,
}

/// The client has gone, or takes nothing.
pub(super) struct Unheard;

impl<'a> Speech<'a> {
    pub(super) fn begin(cbor: &'a Cbor, who: Who) -> Self {
        Self { cbor, who, room: Arc::new(Semaphore::new(UNTAKEN)), buffer: Vec::new(), has_begun: false }
    }

    pub(super) async fn say(&mut self, part: &[u8]) -> Result<(), Unheard> {
        self.buffer.extend_from_slice(part);
        while self.buffer.len() > PIECE_BYTES {
            let rest = self.buffer.split_off(PIECE_BYTES);
            let piece = std::mem::replace(&mut self.buffer, rest);
            self.piece(&piece, false).await?;
        }
        Ok(())
    }

    pub(super) async fn end(mut self) -> Result<(), Unheard> {
        let last = std::mem::take(&mut self.buffer);
        if self.has_begun {
            return self.piece(&last, true).await;
        }
        super::work::push(self.cbor, self.who, &last);
        Ok(())
    }

    async fn piece(&mut self, piece: &[u8], is_last: bool) -> Result<(), Unheard> {
        let room = timeout(PATIENCE, Arc::clone(&self.room).acquire_owned()).await;
        let Ok(Ok(room)) = room else { return Err(Unheard) };
        let mut out = BytesMut::with_capacity(piece.len() + 10);
        frames::put_piece(!self.has_begun, is_last, piece, &mut out);
        self.has_begun = true;
        let answer = Answer::Piece { bytes: out.freeze(), is_last, room };
        self.cbor.gateway.reactors.answer(self.who, answer);
        Ok(())
    }
}
