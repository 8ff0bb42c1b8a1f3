//! The connections of this node that have a session, and how far they know what others changed about their sessions.

use super::effects::Input;
use cratemill_protocol::BuilderId;
use cratemill_store::nodes::Session;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::mpsc;

/// How the rest of the node reaches a connection.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub inputs: mpsc::Sender<Input>,
    /// What the connection was last told.
    pub draining: Arc<AtomicBool>,
}

/// By builder: most have one connection, a builder that just logged in again may have an older one for a moment.
#[derive(Debug)]
pub(super) struct Connections {
    handles: BTreeMap<(BuilderId, String), Handle>,
    /// Those whose session is being recorded.
    opening: HashSet<String>,
    /// All connections know of this many changes that others made.
    told: i64,
}

impl Default for Connections {
    fn default() -> Self {
        Self { handles: BTreeMap::new(), opening: HashSet::new(), told: i64::MIN }
    }
}

impl Connections {
    /// A session of this connection may stand in the database from now on.
    pub(super) fn open(&mut self, connection: &str) {
        self.opening.insert(connection.to_owned());
    }

    /// `changes` is what the node's count was when the session began: it may have missed what came after.
    pub(super) fn insert(&mut self, builder: BuilderId, connection: String, handle: Handle, changes: i64) {
        self.opening.remove(&connection);
        self.handles.insert((builder, connection), handle);
        self.told = self.told.min(changes);
    }

    pub(super) fn remove(&mut self, builder: BuilderId, connection: &str) {
        self.opening.remove(connection);
        self.handles.remove(&(builder, connection.to_owned()));
    }

    pub(super) fn get(&self, builder: BuilderId, connection: &str) -> Option<&Handle> {
        self.of_builder(builder).find(|(other, _)| *other == connection).map(|(_, handle)| handle)
    }

    pub(super) fn of_builder(&self, builder: BuilderId) -> impl Iterator<Item = (&str, &Handle)> {
        let from = (builder, String::new());
        let handles = self.handles.range(from..).take_while(move |((other, _), _)| *other == builder);
        handles.map(|((_, connection), handle)| (&**connection, handle))
    }

    /// Everybody's session must be looked at again.
    pub(super) fn forget_told(&mut self) {
        self.told = i64::MIN;
    }

    /// Whether somebody may not know of all these changes. If so, the caller tells all that are connected now.
    pub(super) fn begin_telling(&mut self, changes: i64) -> bool {
        let news = changes > self.told;
        self.told = self.told.max(changes);
        news
    }

    /// Tells each connection what a lost message would have told it, and finds the sessions that no connection has any
    /// more. `connected` are those that were there before `sessions` were read.
    pub(super) fn repair(
        &mut self,
        connected: &[(BuilderId, String)],
        mut sessions: Vec<Session>,
    ) -> Vec<Session> {
        let by_connection: HashMap<&str, &Session> =
            sessions.iter().map(|session| (&*session.connection, session)).collect();
        for key in connected {
            let Some(handle) = self.handles.get(key) else { continue };
            if let Some(input) = missed(handle, by_connection.get(&*key.1).copied())
                && handle.inputs.try_send(input).is_err()
            {
                // Its queue is full: the next mark tells it again.
                self.told = i64::MIN;
            }
        }
        sessions.retain(|session| {
            self.get(session.builder, &session.connection).is_none()
                && !self.opening.contains(&session.connection)
        });
        sessions
    }

    pub(super) fn all(&self) -> Vec<(BuilderId, String)> {
        self.handles.keys().cloned().collect()
    }
}

fn missed(handle: &Handle, session: Option<&Session>) -> Option<Input> {
    let draining = handle.draining.load(Ordering::Relaxed);
    match session {
        None => Some(Input::Failed("the session is gone, connect again".to_owned())),
        Some(session) if !session.enabled => Some(Input::Disabled),
        Some(session) if session.drain && !draining => Some(Input::Drain),
        Some(session) if !session.drain && draining => Some(Input::Undrain),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        connections: Connections,
        inputs: Vec<mpsc::Receiver<Input>>,
    }

    impl Fixture {
        fn new() -> Self {
            Self { connections: Connections::default(), inputs: Vec::new() }
        }

        fn connect(&mut self, builder: i64, connection: &str, changes: i64, draining: bool) {
            let (inputs, receiver) = mpsc::channel(1);
            self.inputs.push(receiver);
            let handle = Handle { inputs, draining: Arc::new(AtomicBool::new(draining)) };
            self.connections.insert(BuilderId(builder), connection.to_owned(), handle, changes);
        }

        fn repair(&mut self, sessions: Vec<Session>) -> Vec<String> {
            let connected = self.connections.all();
            let left = self.connections.repair(&connected, sessions);
            left.into_iter().map(|session| session.connection).collect()
        }
    }

    fn session(builder: i64, connection: &str, enabled: bool, drain: bool) -> Session {
        let (connection, name) = (connection.to_owned(), format!("builder-{builder}"));
        Session { connection, builder: BuilderId(builder), name, enabled, drain }
    }

    #[test]
    fn a_builders_connections_are_found_and_nobody_elses() {
        let mut fixture = Fixture::new();
        for (builder, connection) in [(1, "a"), (2, "b"), (2, "c"), (3, "")] {
            fixture.connect(builder, connection, 0, false);
        }
        let of = |connections: &Connections, builder| -> Vec<String> {
            connections.of_builder(BuilderId(builder)).map(|(connection, _)| connection.to_owned()).collect()
        };
        assert_eq!(of(&fixture.connections, 2), ["b", "c"]);
        assert_eq!(of(&fixture.connections, 3), [""]);
        assert!(fixture.connections.get(BuilderId(2), "c").is_some());
        assert!(fixture.connections.get(BuilderId(1), "c").is_none());
        fixture.connections.remove(BuilderId(2), "b");
        assert_eq!(of(&fixture.connections, 2), ["c"]);
    }

    #[test]
    fn sessions_are_looked_at_only_after_a_change() {
        let mut fixture = Fixture::new();
        assert!(fixture.connections.begin_telling(3), "it just started");
        assert!(!fixture.connections.begin_telling(3));
        fixture.connect(1, "knows", 3, false);
        assert!(!fixture.connections.begin_telling(3));
        assert!(fixture.connections.begin_telling(4));
        // The fourth change was told to the others while this one's session was on its way to the node.
        fixture.connect(2, "late", 3, false);
        assert!(fixture.connections.begin_telling(4));
        assert!(!fixture.connections.begin_telling(4));
        fixture.connections.forget_told();
        assert!(fixture.connections.begin_telling(0), "a run that was forgotten counts from zero");
    }

    #[test]
    fn each_connection_hears_what_it_missed() {
        let mut fixture = Fixture::new();
        for (builder, connection, draining) in [
            (1, "gone", false),
            (2, "off", false),
            (3, "drains", false),
            (4, "back", true),
            (5, "knows", true),
        ] {
            fixture.connect(builder, connection, 0, draining);
        }
        let sessions = vec![
            session(2, "off", false, false),
            session(3, "drains", true, true),
            session(4, "back", true, false),
            session(5, "knows", true, true),
        ];
        assert!(fixture.repair(sessions).is_empty());
        let heard: Vec<_> = fixture.inputs.iter_mut().map(|inputs| inputs.try_recv().ok()).collect();
        let [Some(Input::Failed(_)), Some(Input::Disabled), Some(Input::Drain), Some(Input::Undrain), None] =
            &heard[..]
        else {
            panic!("{heard:?}")
        };
    }

    #[test]
    fn sessions_that_no_connection_has_are_found() {
        let mut fixture = Fixture::new();
        fixture.connect(1, "here", 0, false);
        fixture.connections.open("coming");
        fixture.connections.open("never came");
        fixture.connections.remove(BuilderId(3), "never came");
        let sessions = [(1, "here"), (2, "coming"), (3, "never came"), (4, "left")]
            .map(|(builder, connection)| session(builder, connection, true, false));
        assert_eq!(fixture.repair(sessions.to_vec()), ["never came", "left"]);
    }

    #[test]
    fn one_that_does_not_keep_up_is_told_at_the_next_mark() {
        let mut fixture = Fixture::new();
        fixture.connect(1, "slow", 0, false);
        assert!(fixture.connections.begin_telling(1));
        fixture.repair(vec![]);
        assert!(!fixture.connections.begin_telling(1), "told");
        fixture.repair(vec![]);
        assert!(fixture.connections.begin_telling(1), "its queue of one was full");
    }
}
