//! What the session does with a message of the server.

use super::{
    Effect, Exit, JobLimits, MIN_HEARTBEAT, NeverMade, Phase, Ready, SUPERSEDED_WAIT, Session,
    attempt::{Attempt, Key},
    rate::Rate,
};
use cratemill_protocol::builder::{
    CancelReason, ClientMessage, CloseReason, Job, JobRef, MAX_LOG_CHUNK_BYTES, Resumed, ServerMessage,
    Welcome,
};
use std::time::{Duration, Instant};

impl Session {
    pub(super) fn receive(&mut self, message: ServerMessage, now: Instant, effects: &mut Vec<Effect>) {
        self.hear(now);
        match (message, &mut self.phase) {
            (ServerMessage::Close { reason, message }, _) => self.closed(reason, message, effects),
            (ServerMessage::ChallengeRequest(challenge), Phase::Login { .. }) => {
                effects.push(Effect::Sign(challenge));
            }
            (ServerMessage::Welcome(welcome), Phase::Login { .. }) => self.greet(welcome, now, effects),
            (ServerMessage::Ping, Phase::Ready(ready)) => ready.next_heartbeat = now,
            (ServerMessage::Drain, Phase::Ready(ready)) => ready.drained_by_server = true,
            (ServerMessage::Jobs { jobs }, Phase::Ready(_)) => {
                for job in jobs {
                    self.take_job(job, effects);
                }
            }
            (ServerMessage::EventAck { job, attempt, seq }, Phase::Ready(_)) => {
                self.ack(JobRef { job, attempt }, seq, effects);
            }
            (ServerMessage::LeaseRenewed { job, attempt, token, .. }, Phase::Ready(_)) => {
                let job = JobRef { job, attempt };
                if self.attempts.contains_key(&Key::of(job)) {
                    effects.push(Effect::Renew(job, token));
                }
            }
            (ServerMessage::JobDone(job), Phase::Ready(_)) => self.forget_ended(job),
            (ServerMessage::Cancel { job, attempt, grace_s, why }, Phase::Ready(_)) => {
                let grace = Duration::from_secs(u64::from(grace_s));
                self.cancel(JobRef { job, attempt }, why, grace, effects);
            }
            (_, Phase::Login { .. } | Phase::Ready(_)) => {
                self.reconnect(
                    "the server sent a message that is not for this moment",
                    Duration::ZERO,
                    effects,
                );
            }
            (_, Phase::Offline) => {}
        }
    }

    fn closed(&mut self, reason: CloseReason, message: String, effects: &mut Vec<Effect>) {
        if reason.is_final() {
            self.go_offline();
            effects.push(Effect::Exit(Exit::Refused { reason, message }));
            return;
        }
        let at_least = match reason {
            CloseReason::Superseded => SUPERSEDED_WAIT,
            _ => Duration::ZERO,
        };
        self.reconnect(format!("closed by the server: {message}"), at_least, effects);
    }

    fn greet(&mut self, welcome: Welcome, now: Instant, effects: &mut Vec<Effect>) {
        let heartbeat = Duration::from_secs(u64::from(welcome.heartbeat_s)).max(MIN_HEARTBEAT);
        let chunk = usize::try_from(welcome.limits.max_log_chunk_bytes).unwrap_or(usize::MAX);
        self.phase = Phase::Ready(Ready {
            heartbeat,
            next_heartbeat: now + heartbeat,
            heard: now,
            max_in_flight: usize::try_from(welcome.limits.max_unacked_events).unwrap_or(usize::MAX),
            limits: JobLimits { max_log_chunk_bytes: chunk.clamp(4, MAX_LOG_CHUNK_BYTES) },
            rate: Rate::new(welcome.limits.max_messages_per_s, now),
            throttled: false,
            slots: None,
            drained_by_server: false,
        });
        let mut kept = Vec::new();
        for answer in &welcome.resumed {
            if let Resumed::Continue { job, attempt, next_seq, token, .. } = answer {
                let job = JobRef { job: *job, attempt: *attempt };
                if self.attempts.contains_key(&Key::of(job)) {
                    kept.push(Key::of(job));
                    effects.push(Effect::Renew(job, token.clone()));
                    self.ack(job, next_seq.saturating_sub(1), effects);
                }
            }
        }
        // What the server did not say to continue is no longer ours.
        let lost: Vec<_> = self.attempts.keys().filter(|key| !kept.contains(key)).map(Key::job_ref).collect();
        for job in lost {
            self.lose(job, effects);
        }
        effects.push(Effect::Ready(welcome));
    }

    fn take_job(&mut self, job: Job, effects: &mut Vec<Effect>) {
        let job_ref = JobRef { job: job.id, attempt: job.attempt };
        if self.attempts.contains_key(&Key::of(job_ref)) {
            effects.push(Effect::Send(ClientMessage::JobAccepted(job_ref)));
            return;
        }
        // A newer attempt of a job that we still work on: the older lease is gone.
        let older: Vec<_> = self.attempts().filter(|known| known.job == job.id).collect();
        for known in older {
            self.lose(known, effects);
        }
        if let Err(why) = self.can_take(&job) {
            let JobRef { job, attempt } = job_ref;
            effects.push(Effect::Send(ClientMessage::JobRejected { job, attempt, why }));
            // The service thought otherwise: it is told again how many jobs are wanted.
            if let Phase::Ready(ready) = &mut self.phase {
                ready.slots = None;
            }
            return;
        }
        let Phase::Ready(ready) = &mut self.phase else { return };
        ready.slots = ready.slots.map(|slots| slots.saturating_sub(1));
        self.attempts.insert(Key::of(job_ref), Attempt::default());
        effects.push(Effect::Send(ClientMessage::JobAccepted(job_ref)));
        effects.push(Effect::Start(Box::new(job), ready.limits));
    }

    fn can_take(&self, job: &Job) -> Result<(), String> {
        if self.is_draining() {
            Err("the builder is about to stop".into())
        } else if !self.has_room {
            Err("the builder's disk is almost full".into())
        } else if self.free_slots() == 0 {
            Err("no free slot".into())
        } else if !job.kind.is_supported() {
            Err(format!("this builder cannot make {}", job.kind))
        } else if job.kind.has_target() && !self.settings.targets.contains(&job.target) {
            Err(format!("this builder does not build for {}", job.target))
        } else {
            Ok(())
        }
    }

    fn ack(&mut self, job: JobRef, seq: u64, effects: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.get_mut(&Key::of(job)) else { return };
        match attempt.window.ack(seq) {
            Ok(0) => {}
            Ok(count) => effects.push(Effect::Credit(job, count)),
            // The server knows of events that we never made: this is not our attempt any more.
            Err(NeverMade { .. }) => self.lose(job, effects),
        }
    }

    fn cancel(&mut self, job: JobRef, why: CancelReason, grace: Duration, effects: &mut Vec<Effect>) {
        match why {
            CancelReason::LeaseLost => self.lose(job, effects),
            CancelReason::Cancelled => {
                if self.attempts.get(&Key::of(job)).is_some_and(Attempt::is_running) {
                    effects.push(Effect::Stop(job, grace));
                }
            }
        }
    }

    /// The attempt is no longer ours: stop it and say nothing more about it.
    fn lose(&mut self, job: JobRef, effects: &mut Vec<Effect>) {
        if self.attempts.remove(&Key::of(job)).is_some() {
            effects.push(Effect::Stop(job, Duration::ZERO));
        }
    }

    fn forget_ended(&mut self, job: JobRef) {
        if self.attempts.get(&Key::of(job)).is_some_and(|attempt| !attempt.is_running()) {
            self.attempts.remove(&Key::of(job));
        }
    }
}
