//! Open connections that wait for something to happen: sockets taken over from the HTTP server, in a table.
//!
//! ```text
//! hub: a channel has news -> wake -> turn: for each such channel, one write to each member with all that is due -> rest
//! epoll: a socket takes bytes again, says something, or is gone
//! sweep: signs of life for those that got nothing, an end for those that take nothing
//! WebSocket: a subscription -> Ask, for a task that can wait for the bus -> Answer
//! ```
//! A connection that waits has a descriptor, a place in its channel, and no buffer. After a turn a reactor rests for a
//! multiple of what the turn took, so that at high rates more is due in each write: the call is what costs.

mod beat;
mod deliver;
mod guest;
mod listeners;
mod routes;
mod run;
mod say;
mod socket;
mod table;
mod talk;
mod talks;

pub use self::guest::{Guests, Order, Said, Todo, rules};
pub use self::listeners::{First, Listener};
pub use self::routes::Routes;
use self::table::SlotId;
use crate::{
    auth::Holder,
    cbor::Session,
    dialects::{
        Dialect,
        cbor::IdForm,
        mastodon::{
            channel::{AccountId, Channel},
            post::Post,
            request::Error,
            stream::Stream,
        },
    },
    engine::{
        channel::Mark,
        hub::{Hub, Member},
        seats::{Seat, Seats},
        viewer::{ResetReason, Since},
        wake::Wake,
    },
    mastodon::Admission,
    metrics,
};
use anyhow::Context as _;
use bytes::Bytes;
use cratemill_protocol::{SubscriptionId, topic::Topic};
use futures_util::future::try_join_all;
use std::{
    net::TcpStream,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    task::AbortHandle,
};

/// A connection for a reactor.
#[derive(Debug)]
pub struct Parking {
    pub stream: TcpStream,
    pub seat: Seat,
    pub dialect: Dialect,
    /// To be written before anything else.
    pub owed: Bytes,
    pub kind: Kind,
}

#[derive(Debug)]
pub enum Kind {
    /// A stream of events; the reactor that the member was counted for gets the connection.
    Events {
        member: Member,
        /// The next message for it.
        cursor: u32,
    },
    /// A WebSocket, which says what it wants when it is open.
    WebSocket {
        reactor: usize,
        holder: Arc<Holder>,
        /// What came behind the handshake.
        early: Bytes,
    },
    /// A client of CBOR.
    Guest { reactor: usize, session: Session, early: Bytes },
    /// Somebody who listens to Mastodon, with the reactor of their account.
    Listener { reactor: usize, listener: Box<Listener>, early: Bytes },
}

/// A connection that said something: by the time of the answer its slot may be another's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Who {
    slot: SlotId,
    serial: u32,
    reactor: u16,
}

impl Who {
    pub fn reactor(self) -> usize {
        self.reactor.into()
    }
}

/// One that asked for a topic, and may have asked for it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    who: Who,
    ask: u32,
}

impl Asker {
    pub fn reactor(self) -> usize {
        self.who.reactor()
    }
}

impl From<Who> for Asker {
    fn from(who: Who) -> Self {
        Self { who, ask: 0 }
    }
}

/// A subscription for somebody who can wait to look into.
#[derive(Debug)]
pub struct Ask {
    pub asker: Asker,
    pub topic: Topic,
    pub since: Since,
    wanted: Weak<()>,
}

impl Ask {
    /// Whether somebody waits for the answer.
    pub fn is_wanted(&self) -> bool {
        self.wanted.strong_count() > 0
    }
}

#[derive(Debug)]
pub enum Answer {
    /// What comes from `cursor` on goes to the connection, which has seen everything up to `mark`.
    Joined {
        member: Member,
        cursor: u32,
        mark: Mark,
        reset: Option<ResetReason>,
    },
    /// A task reads for it, for as long as the guard is kept.
    Followed {
        task: Task,
    },
    /// Whole messages of such a task, which says no more before a few of them are written.
    Said {
        bytes: Bytes,
        room: OwnedSemaphorePermit,
    },
    /// Nothing comes of it, or nothing more.
    Ended {
        bytes: Bytes,
    },
    /// For a client of CBOR: from `cursor` on it gets what comes.
    Follow {
        member: Member,
        cursor: u32,
    },
    Unfollow(SubscriptionId),
    /// All of what it was to follow by now it follows.
    Settled,
    /// It writes ids in this way.
    Speak(IdForm),
    /// Whole messages.
    Push(Bytes),
    /// A frame of a message, between whose frames nothing else comes. No more of them come before some are written.
    Piece {
        bytes: Bytes,
        is_last: bool,
        room: OwnedSemaphorePermit,
    },
    /// All it said is done.
    Done,
    /// For a listener to Mastodon: what it asked for, and whether it may have it.
    Admitted(Stream, Result<Admission, Error>),
    /// What it listens to is subscribed.
    Stands,
    /// It has to go.
    HangUp {
        code: u16,
        reason: &'static str,
    },
}

/// What Redis is to do for listeners to Mastodon, in this order.
#[derive(Debug)]
pub enum Want {
    Subscribe(Channel),
    Unsubscribe(Channel),
    /// This connection is to be told once all before it is done.
    Standing(Who),
}

impl Want {
    pub(crate) fn standing(&self) -> Option<Who> {
        match self {
            Self::Standing(who) => Some(*who),
            Self::Subscribe(_) | Self::Unsubscribe(_) => None,
        }
    }
}

/// A stream of Mastodon that somebody asks for, and that has to be looked into.
#[derive(Debug)]
pub struct Question {
    pub who: Who,
    pub account: AccountId,
    pub sees_all: bool,
    pub stream: Stream,
}

/// What comes from Mastodon, for reactors.
#[derive(Debug)]
pub enum Mail {
    Post(Channel, Arc<Post>),
    /// A token, or an account, is not good any more.
    Kill(Channel),
    /// What waits for this account's rules can be judged now.
    Judge(AccountId),
}

/// What reactors need for listeners to Mastodon.
#[derive(Debug, Clone)]
pub struct Ears {
    pub wants: mpsc::UnboundedSender<Want>,
    pub questions: mpsc::UnboundedSender<Question>,
    pub routes: Arc<Routes>,
    /// How long a stream of events may be away and still get what it missed.
    pub replay: Duration,
    /// What all messages take that no reactor has handed out.
    pub queued: Arc<AtomicUsize>,
}

/// That may be so much: reactors that are so far behind do not get more.
const MAX_QUEUED: usize = 256 << 20;

/// Dropping it ends the task.
#[derive(Debug)]
pub struct Task(pub AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// There is at most one of the first for each seat, a few answers for each WebSocket, and the others come once.
#[derive(Debug)]
enum Command {
    Park(Parking),
    Answer(Asker, Answer),
    Mail(Mail),
    /// Says which channels of Mastodon it needs.
    Name(mpsc::UnboundedSender<Vec<Channel>>),
    /// All are told to go.
    Drain,
    /// Nobody comes any more: whoever does not take its last bytes soon is cut off.
    End,
}

#[derive(Debug)]
struct Handle {
    inbox: std::sync::mpsc::Sender<Command>,
    wake: Arc<Wake>,
}

#[derive(Debug)]
pub struct Reactors {
    handles: Vec<Handle>,
    next: AtomicUsize,
    routes: Arc<Routes>,
    queued: Arc<AtomicUsize>,
}

impl Reactors {
    /// Each on a thread of its own. The future ends when all threads have ended; an error says that one did by itself.
    pub fn start(
        count: usize,
        hub: &Arc<Hub>,
        seats: &Arc<Seats>,
        asks: &mpsc::UnboundedSender<Ask>,
        guests: &Guests,
        ears: &Ears,
        heartbeat: Duration,
    ) -> anyhow::Result<(Arc<Self>, impl Future<Output = anyhow::Result<()>> + Send + use<>)> {
        let wakes: Vec<_> =
            (0..count).map(|_| Wake::new().map(Arc::new)).collect::<Result<_, _>>().context("no eventfd")?;
        hub.set_reactors(wakes.clone());
        let (mut handles, mut ends) = (Vec::new(), Vec::new());
        for (number, wake) in wakes.into_iter().enumerate() {
            let (inbox, commands) = std::sync::mpsc::channel();
            let (end, ended) = oneshot::channel();
            let shared = run::Shared {
                reactors: count.max(1),
                hub: Arc::clone(hub),
                seats: Arc::clone(seats),
                asks: asks.clone(),
                guests: guests.clone(),
                ears: ears.clone(),
                wake: Arc::clone(&wake),
            };
            let reactor =
                run::Reactor::new(number, shared, commands, heartbeat).context("cannot make a reactor")?;
            // A panic drops the sender.
            let run = move || drop(end.send(reactor.run()));
            std::thread::Builder::new().name(format!("reactor-{number}")).spawn(run)?;
            handles.push(Handle { inbox, wake });
            ends.push(ended);
        }
        // The first that goes wrong, whichever it is.
        let ended = async {
            let each = ends.into_iter().map(async |end| end.await.context("a reactor died")?);
            try_join_all(each).await.map(drop)
        };
        let (routes, queued) = (Arc::clone(&ears.routes), Arc::clone(&ears.queued));
        Ok((Arc::new(Self { handles, next: AtomicUsize::new(0), routes, queued }), ended))
    }

    /// The number of the reactor whose turn it is to get a connection.
    pub fn choose(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len().max(1)
    }

    pub fn park(&self, parking: Parking) {
        let reactor = match &parking.kind {
            Kind::Events { member, .. } => member.reactor,
            Kind::WebSocket { reactor, .. }
            | Kind::Guest { reactor, .. }
            | Kind::Listener { reactor, .. } => *reactor,
        };
        if let Some(handle) = self.handles.get(reactor) {
            handle.send(Command::Park(parking));
        }
    }

    pub fn answer(&self, to: impl Into<Asker>, answer: Answer) {
        let asker = to.into();
        if let Some(handle) = self.handles.get(asker.reactor()) {
            handle.send(Command::Answer(asker, answer));
        }
    }

    /// Where all connections of an account of Mastodon are.
    pub fn of_account(&self, account: AccountId) -> usize {
        // Ids of accounts count up, or are times.
        let mixed = account.0.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        usize::try_from(mixed).unwrap_or(0) % self.handles.len().max(1)
    }

    /// To the reactors that have somebody it is for.
    pub fn mail(&self, mail: Mail) {
        let (channel, account) = match &mail {
            Mail::Judge(account) => (None, Some(*account)),
            Mail::Post(channel, _) | Mail::Kill(channel) => (Some(channel), channel.account()),
        };
        if let Some(account) = account {
            return self.send(self.of_account(account), Command::Mail(mail));
        }
        match (channel, &mail) {
            (Some(channel), Mail::Post(_, post)) => {
                for reactor in self.routes.of(channel) {
                    self.send(reactor, Command::Mail(Mail::Post(channel.clone(), Arc::clone(post))));
                }
            }
            // A token does not say whose it is.
            (Some(channel), Mail::Kill(_)) => {
                for reactor in 0..self.handles.len() {
                    self.send(reactor, Command::Mail(Mail::Kill(channel.clone())));
                }
            }
            _ => {}
        }
    }

    /// Every channel of Mastodon that a reactor needs; some more than once.
    pub async fn channels(&self) -> Vec<Channel> {
        let (sender, mut named) = mpsc::unbounded_channel();
        for handle in &self.handles {
            handle.send(Command::Name(sender.clone()));
        }
        drop(sender);
        let mut all = Vec::new();
        while let Some(channels) = named.recv().await {
            all.extend(channels);
        }
        all
    }

    fn send(&self, reactor: usize, command: Command) {
        if let Command::Mail(Mail::Post(_, post)) = &command {
            let queued = self.queued.fetch_add(post.cost(), Ordering::Relaxed);
            if queued > MAX_QUEUED {
                self.queued.fetch_sub(post.cost(), Ordering::Relaxed);
                return metrics::mastodon_overflow();
            }
        }
        if let Some(handle) = self.handles.get(reactor) {
            handle.send(command);
        }
    }

    pub fn drain(&self) {
        for handle in &self.handles {
            handle.send(Command::Drain);
        }
    }

    pub fn end(&self) {
        for handle in &self.handles {
            handle.send(Command::End);
        }
    }
}

impl Handle {
    fn send(&self, command: Command) {
        // A reactor that is gone ends the process.
        let _ = self.inbox.send(command);
        self.wake.wake();
    }
}
