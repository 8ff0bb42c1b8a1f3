//! The loop of one reactor.

use super::{
    Ask, Command, Ears, Kind, Mail, Parking, Who,
    deliver::{Member, Owed},
    guest::{Departed, Guest, Guests},
    listeners::{Listeners, Mailbox},
    socket,
    table::{Slot, SlotId, Table},
    talks::{Party, Talk, Talks},
};
use crate::engine::{
    channel::ChannelId, hub::Hub, memory::Trim, seats::Seats, viewer::DropReason, wake::Wake,
};
use crate::{dialects::native::encode::drop_reason, metrics};
use anyhow::Context as _;
use bytes::Bytes;
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::{ClockId, clock_gettime},
};
use smallvec::SmallVec;
use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedSender;

/// Sockets that are looked at before what else is due.
const EVENTS: usize = 1_024;
/// Stands for the wake among the slots.
const WAKE: u64 = u64::MAX;
/// A turn is followed by a rest of so many times the work it was,
const REST_TURNS: u32 = 8;
/// but not a shorter one, for what comes meanwhile is told in one turn,
const MIN_REST: Duration = Duration::from_millis(2);
/// and not a longer one: what happens now is seen now.
const MAX_REST: Duration = Duration::from_millis(20);
/// A sweep over all connections, which takes a quarter of a heartbeat, has so many steps.
const SWEEP_STEPS: u32 = 32;
/// Sweeps that find a connection silent: the last shows it a sign of life, within a heartbeat.
const SILENT_SWEEPS: u8 = 3;
/// A connection that is owed something and takes nothing for so many heartbeats is stuck.
const STUCK_HEARTBEATS: u32 = 2;
/// A peer that goes on talking where nothing is expected wastes our time.
const MAX_NOISE: u8 = 16;
/// Connections that take their last bytes take them by then.
const LAST_BYTES: Duration = Duration::from_secs(3);

/// What a reactor has in common with others.
pub(super) struct Shared {
    pub(super) reactors: usize,
    pub(super) hub: Arc<Hub>,
    pub(super) seats: Arc<Seats>,
    pub(super) asks: UnboundedSender<Ask>,
    pub(super) guests: Guests,
    pub(super) ears: Ears,
    pub(super) wake: Arc<Wake>,
}

pub(super) struct Reactor {
    pub(super) number: usize,
    /// How many there are.
    pub(super) reactors: usize,
    pub(super) hub: Arc<Hub>,
    pub(super) seats: Arc<Seats>,
    pub(super) epoll: Epoll,
    pub(super) table: Table,
    pub(super) members: HashMap<ChannelId, SmallVec<[Member; 2]>>,
    pub(super) talks: Talks,
    /// Of the newest WebSocket, or request of one.
    pub(super) serial: u32,
    pub(super) asks: UnboundedSender<Ask>,
    pub(super) guests: Guests,
    pub(super) listeners: Listeners,
    pub(super) mailbox: Mailbox,
    pub(super) ears: Ears,
    /// What all of them have said and that is not done.
    pub(super) inbound_bytes: usize,
    /// Those whose connections have ended while somebody does what they said.
    pub(super) departed: HashMap<u32, Departed>,
    pub(super) began: Instant,
    pub(super) owed: HashMap<SlotId, Owed>,
    /// Bytes in `owed`, and of the messages that wait behind it.
    pub(super) owed_bytes: usize,
    /// Channels with members that did not get everything, though they took all they were given.
    pub(super) unfinished: Vec<ChannelId>,
    pub(super) draining: bool,
    wake: Arc<Wake>,
    commands: mpsc::Receiver<Command>,
    pub(super) stuck_after: Duration,
    trim: Trim,
    sweep_every: Duration,
    next_sweep: Instant,
    pub(super) next_beat: Instant,
    /// The step of the beat that comes next.
    pub(super) beat: usize,
    /// The step that comes next.
    step: usize,
    rested: Instant,
    /// There is something to do in a turn.
    pub(super) due: bool,
    /// When whoever is left is cut off.
    end: Option<Instant>,
}

impl Reactor {
    pub(super) fn new(
        number: usize,
        Shared { reactors, hub, seats, asks, guests, ears, wake }: Shared,
        commands: mpsc::Receiver<Command>,
        heartbeat: Duration,
    ) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let now = Instant::now();
        Ok(Self {
            number,
            reactors,
            hub,
            seats,
            epoll,
            table: Table::default(),
            members: HashMap::new(),
            talks: Talks::default(),
            serial: 0,
            asks,
            guests,
            listeners: Listeners::new(ears.wants.clone(), Arc::clone(&ears.routes), number),
            mailbox: Mailbox::default(),
            ears,
            inbound_bytes: 0,
            departed: HashMap::new(),
            began: now,
            owed: HashMap::new(),
            owed_bytes: 0,
            unfinished: Vec::new(),
            draining: false,
            wake,
            commands,
            trim: Trim::new(now),
            stuck_after: heartbeat * STUCK_HEARTBEATS,
            sweep_every: heartbeat / 4 / SWEEP_STEPS,
            next_sweep: now,
            next_beat: now,
            beat: 0,
            step: 0,
            rested: now,
            due: false,
            end: None,
        })
    }

    /// Until it is told to end.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        while !self.has_ended() {
            let timeout = EpollTimeout::try_from(self.wait()).unwrap_or(EpollTimeout::ZERO);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("cannot wait for sockets"),
            };
            for event in &events[..count] {
                if let Ok(slot) = SlotId::try_from(event.data()) {
                    self.ready(slot, event.events());
                } else {
                    self.wake.clear();
                    self.due = true;
                }
            }
            let now = Instant::now();
            if self.due && now >= self.rested {
                let before = worked();
                self.turn();
                let took = worked().saturating_sub(before);
                self.rested = Instant::now() + (took * REST_TURNS).clamp(MIN_REST, MAX_REST);
            }
            if now >= self.next_sweep {
                self.sweep();
                // Of the whole process.
                if self.number == 0 {
                    self.trim.look(self.seats.taken(), now);
                    self.hub.channels(|channels, _| channels.forget(now));
                }
                self.next_sweep = now + self.sweep_every;
            }
            while now >= self.next_beat {
                self.beat();
            }
            self.table.reuse();
        }
        Ok(())
    }

    pub(super) fn who(&self, slot: SlotId, serial: u32) -> Who {
        // There is one for each processor.
        Who { slot, serial, reactor: u16::try_from(self.number).unwrap_or(u16::MAX) }
    }

    fn has_ended(&self) -> bool {
        let is_empty = self.table.is_empty() && self.departed.is_empty();
        self.end.is_some_and(|end| is_empty || Instant::now() >= end)
    }

    fn wait(&self) -> Duration {
        let now = Instant::now();
        let sweep = self.next_sweep.min(self.next_beat);
        let until = if self.due { self.rested.min(sweep) } else { sweep };
        let wait = until.saturating_duration_since(now);
        // Whole milliseconds, upwards: a wait that is too short is a loop.
        Duration::from_millis(wait.as_micros().div_ceil(1_000).try_into().unwrap_or(u64::MAX))
    }

    fn turn(&mut self) {
        self.due = false;
        self.wake.rearm();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Park(parking) => self.park(parking),
                Command::Answer(asker, answer) => self.answered(asker, answer),
                Command::Mail(Mail::Post(channel, post)) => self.mailbox.put(channel, post),
                Command::Mail(mail) => {
                    // What came before it is handed out before.
                    self.hand_out_mail();
                    self.obey(mail);
                }
                Command::Name(to) => self.name_channels(&to),
                Command::Drain => self.drain(),
                Command::End => self.end = Some(Instant::now() + LAST_BYTES),
            }
        }
        self.hand_out_mail();
        let mut unfinished = std::mem::take(&mut self.unfinished);
        unfinished.sort_unstable();
        unfinished.dedup();
        let news = self.hub.channels(|channels, _| channels.take_news(self.number));
        for channel in unfinished {
            self.deliver(channel);
        }
        for channel in news {
            self.deliver(channel);
        }
        self.due |= !self.unfinished.is_empty();
    }

    fn park(&mut self, parking: Parking) {
        let Parking { stream, seat, dialect, owed, kind } = parking;
        socket::bound_kernel_memory(&stream);
        let slot = Slot { stream: Some(stream), dialect, heard: true, ..Slot::default() };
        let Some(id) = self.table.put(slot) else { return };
        seat.keep();
        let early = self.enter(id, kind);
        self.open_guest(id);
        let added = match self.table.get(id).and_then(|slot| slot.stream.as_ref()) {
            Some(stream) => self.epoll.add(stream, EpollEvent::new(LISTENING, id.into())),
            None => Ok(()),
        };
        if let Err(error) = added {
            tracing::warn!(%error, "cannot wait for a socket");
            return self.close(id);
        }
        if self.is_guest(id) {
            self.listen(id);
        }
        self.give(id, &owed);
        if self.draining {
            return self.farewell(id);
        }
        self.begin_listening(id);
        self.hear(id, &early);
        if self.table.get(id).is_some_and(|slot| !slot.owing) {
            self.go_on(id);
        }
    }

    /// Puts a connection where it belongs; what it has said already is returned.
    fn enter(&mut self, id: SlotId, kind: Kind) -> Bytes {
        let now = self.now();
        let Some(slot) = self.table.get(id) else { return Bytes::new() };
        match kind {
            Kind::Events { member, cursor } => {
                let members = self.members.entry(member.channel).or_default();
                // There are no more members than slots.
                slot.member = u32::try_from(members.len()).unwrap_or(u32::MAX);
                slot.channel = member.keep();
                members.push(Member { slot: id, cursor });
                Bytes::new()
            }
            Kind::WebSocket { holder, early, reactor: _ } => {
                self.serial = self.serial.wrapping_add(1);
                slot.member = self.talks.put(Talk::new(self.serial, Party::Client(holder)));
                early
            }
            Kind::Listener { listener, early, reactor: _ } => {
                self.enter_listener(id, *listener);
                early
            }
            Kind::Guest { session, early, reactor: _ } => {
                self.serial = self.serial.wrapping_add(1);
                let party = Party::Guest(Guest::new(self.guests.sessions.pack(&session), now));
                slot.member = self.talks.put(Talk::new(self.serial, party));
                early
            }
        }
    }

    fn ready(&mut self, id: SlotId, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLIN) {
            self.read(id);
        }
        let gone = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP;
        if flags.intersects(gone) {
            // The kernel may be the first to lose patience.
            if flags.contains(EpollFlags::EPOLLERR)
                && self.table.get(id).is_some_and(|slot| slot.owing && !slot.leaving)
            {
                metrics::dropped(drop_reason(DropReason::Slow));
            }
            return self.close(id);
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.pay(id);
        }
    }

    fn read(&mut self, id: SlotId) {
        let Some(slot) = self.table.get(id) else { return };
        let Some(stream) = &slot.stream else { return };
        let mut buffer = [0; socket::READ_BYTES];
        match socket::read(stream, &mut buffer) {
            Some(0) => {}
            Some(count) if slot.dialect.is_socket() => self.hear(id, &buffer[..count]),
            Some(_) => {
                slot.noise = slot.noise.saturating_add(1);
                if slot.noise > MAX_NOISE {
                    self.close(id);
                }
            }
            None => self.close(id),
        }
    }

    /// The next part of the table.
    fn sweep(&mut self) {
        if self.table.is_empty() {
            self.table.shrink();
        }
        self.forget_listeners(Instant::now());
        let steps = SWEEP_STEPS as usize;
        let end = self.table.len() * (self.step + 1) / steps;
        for id in self.table.len() * self.step / steps..end {
            if let Ok(id) = SlotId::try_from(id) {
                self.look_after(id);
            }
        }
        self.step = (self.step + 1) % steps;
    }

    fn look_after(&mut self, id: SlotId) {
        let Some(slot) = self.table.get(id) else { return };
        if slot.owing {
            if self.is_stuck(id) {
                self.drop_for(id, DropReason::Slow);
            }
            return;
        }
        slot.silent = if std::mem::take(&mut slot.heard) { 0 } else { slot.silent + 1 };
        if slot.silent >= SILENT_SWEEPS {
            slot.silent = 0;
            self.show_life(id);
        }
    }

    fn drain(&mut self) {
        self.draining = true;
        for id in 0..self.table.len() {
            if let Ok(id) = SlotId::try_from(id) {
                self.farewell(id);
            }
        }
    }
}

/// What this thread has used of a processor. A turn during which others had it was not longer for that.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What is waited for of a connection that has everything.
pub(super) const LISTENING: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);
