//! What came since the last turn, to those it is for: one write to each, with all of it.

use super::{
    super::{
        deliver::rest,
        run::Reactor,
        socket::{self, Written},
        table::SlotId,
    },
    log::Log,
    records::{Record, RecordId},
    shared::{Member, Shared},
};
use crate::{
    dialects::mastodon::{
        Form,
        channel::{AccountId, Channel},
        filter::{self, Decision},
        post::Post,
    },
    engine::viewer::DropReason,
    metrics,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use cratemill_service::clock;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// What one connection may have waiting that does not take it.
const MAX_BACKLOG_BYTES: usize = 1 << 20;
/// Messages of one connection that wait until they can be judged.
const MAX_HELD: usize = 512;

/// What came, and what came lately.
#[derive(Default)]
pub(in crate::reactor) struct Mailbox {
    new: Vec<(Channel, Arc<Post>)>,
    log: Log,
}

impl Mailbox {
    pub(in crate::reactor) fn put(&mut self, channel: Channel, post: Arc<Post>) {
        self.new.push((channel, post));
    }

    pub(in crate::reactor) fn forget(&mut self, now: Instant, kept: Duration) {
        self.log.forget(now, kept);
    }
}

/// What is for the same people.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
enum Target {
    Account(AccountId),
    Shared(Channel),
}

/// What comes up while it is handed out.
#[derive(Default)]
struct Handing {
    messages: [u64; 2],
    /// Why, if they can be told.
    gone: Vec<(SlotId, Option<DropReason>)>,
}

impl Reactor {
    /// All that came since the last turn.
    pub(in crate::reactor) fn hand_out_mail(&mut self) {
        let new = std::mem::take(&mut self.mailbox.new);
        if new.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut order: Vec<Target> = Vec::new();
        let mut batches: HashMap<Target, Vec<(Channel, Arc<Post>)>> = HashMap::new();
        let is_kept = !self.ears.replay.is_zero() && self.listeners.has_events();
        let costs: usize = new.iter().map(|(_, post)| post.cost()).sum();
        self.ears.queued.fetch_sub(costs, Ordering::Relaxed);
        for (channel, post) in new {
            if is_kept {
                self.mailbox.log.push(channel.clone(), Arc::clone(&post), now);
            }
            let target = channel.account().map_or_else(|| Target::Shared(channel.clone()), Target::Account);
            let batch = batches.entry(target.clone()).or_insert_with(|| {
                order.push(target);
                Vec::new()
            });
            batch.push((channel, post));
        }
        for target in order {
            let Some(batch) = batches.remove(&target) else { continue };
            let mut handing = Handing::default();
            match target {
                Target::Account(account) => self.hand_to_account(account, &batch, &mut handing),
                Target::Shared(channel) => {
                    let posts: Vec<Arc<Post>> = batch.into_iter().map(|(_, post)| post).collect();
                    self.hand_to_all(&channel, &posts, &mut handing);
                }
            }
            self.end_handing(handing);
        }
    }

    fn hand_to_account(&mut self, account: AccountId, batch: &[(Channel, Arc<Post>)], handing: &mut Handing) {
        let mut made: Vec<(_, Bytes, u64)> = Vec::new();
        let mut theirs: Vec<(SlotId, Form, usize)> = Vec::new();
        for record in self.listeners.of_account(account).filter(|record| record.is_open && !record.is_ghost())
        {
            let kind = record.kind();
            let known = made.iter().position(|(known, ..)| *known == kind).unwrap_or_else(|| {
                let (bytes, count) = own(record, batch);
                made.push((kind, bytes, count));
                made.len() - 1
            });
            theirs.push((record.slot, record.form, known));
        }
        for (slot, form, known) in theirs {
            let (_, bytes, count) = &made[known];
            self.hand(slot, form, bytes, *count, handing);
        }
    }

    /// Nobody is closed meanwhile: that would take it from its place among the members.
    fn hand_to_all(&mut self, channel: &Channel, posts: &[Arc<Post>], handing: &mut Handing) {
        let Some(shared) = self.listeners.take_shared(channel) else { return };
        let (mut made, moment) = (Made::default(), Moment::now());
        let mut behind = Vec::new();
        for member in &shared.members {
            let Some(record) = self.listeners.get_mut(member.record) else { continue };
            if record.is_ghost() || !record.is_open {
                continue;
            }
            let (slot, form, account) = (record.slot, record.form, record.account);
            let is_behind = record.more.as_ref().is_some_and(|more| !more.held.is_empty());
            match judged(&shared, member, posts, &mut made, moment) {
                Some(sight) if !is_behind => {
                    let (bytes, count) = made.of(&sight);
                    self.hand(slot, form, bytes, count, handing);
                }
                judged => {
                    let more = record.more();
                    more.held.extend(posts.iter().map(|post| (channel.clone(), Arc::clone(post))));
                    if more.held.len() > MAX_HELD {
                        handing.gone.push((slot, Some(DropReason::Broken)));
                    } else if judged.is_some() {
                        behind.push(account);
                    }
                }
            }
        }
        self.listeners.give_back(channel, shared);
        for account in behind {
            self.judge_held(account);
        }
    }

    /// What waited for rules that could not be read.
    pub(in crate::reactor) fn judge_held(&mut self, account: AccountId) {
        let theirs: Vec<SlotId> = self.listeners.of_account(account).map(|record| record.slot).collect();
        for slot in theirs {
            let Some(id) = self.record(slot) else { continue };
            let Some(record) = self.listeners.get_mut(id) else { continue };
            let form = record.form;
            let Some(more) = &mut record.more else { continue };
            let mut held = std::mem::take(&mut more.held);
            let (mut frames, mut count, moment) = (Vec::new(), 0, Moment::now());
            while let Some((channel, post)) = held.front() {
                if let Some((shared, member)) = self.listeners.member(id, channel) {
                    let (posts, mut made) = (std::slice::from_ref(post), Made::default());
                    let Some(sight) = judged(shared, member, posts, &mut made, moment) else { break };
                    let (bytes, seen) = made.of(&sight);
                    frames.push(bytes.clone());
                    count += seen;
                }
                held.pop_front();
            }
            let mut handing = Handing::default();
            self.hand(slot, form, &joined(frames), count, &mut handing);
            if let Some(record) = self.listeners.get_mut(id) {
                record.more().held = held;
                record.tidy();
            }
            self.end_handing(handing);
        }
    }

    /// What a stream of events missed while it was away, and the rest from where on it cannot be judged at the moment.
    pub(super) fn missed(&self, id: RecordId) -> (Vec<Bytes>, Vec<(Channel, Arc<Post>)>) {
        let (mut frames, mut unjudged) = (Vec::new(), Vec::new());
        let Some(record) = self.listeners.get(id) else { return (frames, unjudged) };
        let last = record.more.as_ref().and_then(|more| more.last_event_id.as_deref());
        let Some(last) = last else { return (frames, unjudged) };
        let channels = self.listeners.channels_of(id);
        for (channel, post) in self.mailbox.log.after(last, &channels) {
            if channel.account().is_some() {
                frames.push(own(record, &[(channel.clone(), Arc::clone(post))]).0);
                continue;
            }
            let Some((shared, member)) = self.listeners.member(id, channel) else { continue };
            let (posts, mut made) = (std::slice::from_ref(post), Made::default());
            match judged(shared, member, posts, &mut made, Moment::now()) {
                Some(sight) if unjudged.is_empty() => frames.push(made.of(&sight).0.clone()),
                _ => unjudged.push((channel.clone(), Arc::clone(post))),
            }
        }
        (frames, unjudged)
    }

    /// Now, or behind what the connection is owed. Nobody is closed here.
    fn hand(&mut self, id: SlotId, form: Form, bytes: &Bytes, count: u64, handing: &mut Handing) {
        let Some(slot) = self.table.get(id).filter(|slot| !slot.leaving && !bytes.is_empty()) else { return };
        if slot.owing {
            if self.wait_behind(id, bytes) {
                handing.messages[usize::from(form == Form::Socket)] += count;
            } else {
                handing.gone.push((id, Some(DropReason::Slow)));
            }
            return;
        }
        let Some(stream) = &slot.stream else { return };
        slot.heard = true;
        match socket::write(stream, bytes) {
            Written::All => {}
            Written::Part(taken) => {
                let worst = self.owe(id, rest(bytes, taken));
                handing.gone.extend(worst.map(|worst| (worst, Some(DropReason::Slow))));
            }
            Written::Gone => return handing.gone.push((id, None)),
        }
        handing.messages[usize::from(form == Form::Socket)] += count;
    }

    /// False where it is too much.
    fn wait_behind(&mut self, id: SlotId, bytes: &Bytes) -> bool {
        let Some(talk) = self.talks.get_mut(&self.table, id) else { return true };
        self.owed_bytes += bytes.len();
        let backlog = &mut talk.extra().backlog;
        backlog.push(bytes.clone(), None);
        backlog.bytes() <= MAX_BACKLOG_BYTES
    }

    fn end_handing(&mut self, mut handing: Handing) {
        let [events, sockets] = handing.messages;
        metrics::mastodon_sent(Form::Events, events);
        metrics::mastodon_sent(Form::Socket, sockets);
        if let Some(worst) = self.forgive() {
            handing.gone.push((worst, Some(DropReason::Slow)));
        }
        for (slot, reason) in handing.gone {
            match reason {
                Some(reason) => self.drop_for(slot, reason),
                None => self.close(slot),
            }
        }
    }
}

/// What came on the channels of an account, for one of its connections.
fn own(record: &Record, batch: &[(Channel, Arc<Post>)]) -> (Bytes, u64) {
    let mut frames = Vec::new();
    for (channel, post) in batch {
        frames.extend(record.labels(channel).iter().flatten().map(|label| post.encoded(record.form, label)));
    }
    let count = frames.len() as u64;
    (joined(frames), count)
}

fn joined(mut frames: Vec<Bytes>) -> Bytes {
    if frames.len() == 1 {
        return frames.pop().unwrap_or_default();
    }
    let mut out = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    for frame in frames {
        out.put(frame);
    }
    out.freeze()
}

/// What was made for others who see all of it unchanged.
#[derive(Default)]
struct Made(Vec<AsAll>);

struct AsAll {
    kind: (u16, Form),
    frames: Vec<Bytes>,
    /// All of them.
    joined: Bytes,
}

/// What one of many is to see.
enum Sight {
    /// All of what was made, which has this place.
    All(usize),
    /// So many messages.
    Own(Bytes, u64),
}

impl Made {
    fn of<'a>(&'a self, sight: &'a Sight) -> (&'a Bytes, u64) {
        match sight {
            Sight::All(place) => (&self.0[*place].joined, self.0[*place].frames.len() as u64),
            Sight::Own(bytes, count) => (bytes, *count),
        }
    }
}

#[derive(Clone, Copy)]
struct Moment {
    now: Instant,
    now_ms: i64,
}

impl Moment {
    fn now() -> Self {
        Self { now: Instant::now(), now_ms: clock::now_ms() }
    }
}

/// What one of many is to see; nothing where that cannot be said at the moment.
fn judged(
    shared: &Shared,
    member: &Member,
    posts: &[Arc<Post>],
    made: &mut Made,
    Moment { now, now_ms }: Moment,
) -> Option<Sight> {
    let kind = member.kind();
    let label = shared.label(member);
    let known = made.0.iter().position(|known| known.kind == kind).unwrap_or_else(|| {
        let frames: Vec<Bytes> = posts.iter().map(|post| post.encoded(member.form, label)).collect();
        made.0.push(AsAll { kind, joined: joined(frames.clone()), frames });
        made.0.len() - 1
    });
    let Some(lens) = &member.lens else { return Some(Sight::All(known)) };
    let (frames, rules) = (&made.0[known].frames, lens.viewer.rules(now)?);
    let languages = lens.languages.as_ref().map(|languages| &languages[..]);
    // Nothing while all that came before is shown as it is.
    let mut seen: Option<Vec<Bytes>> = None;
    for (at, (post, frame)) in posts.iter().zip(frames).enumerate() {
        match filter::decide(&rules, lens.closed, languages, post, now_ms) {
            Decision::Show => seen.iter_mut().for_each(|seen| seen.push(frame.clone())),
            Decision::Hide => {
                seen.get_or_insert_with(|| frames[..at].to_vec());
            }
            Decision::Annotate(matches) => seen
                .get_or_insert_with(|| frames[..at].to_vec())
                .push(post.annotated(member.form, label, &matches)),
        }
    }
    Some(seen.map_or(Sight::All(known), |seen| {
        let count = seen.len() as u64;
        Sight::Own(joined(seen), count)
    }))
}
