//! Who downloads: user agents as they come, each with the class that it has to be counted in. Not cargo-binstall: what it
//! asks for twice is one install, and no sum of its answers.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Client {
    /// None, if it is empty.
    pub(super) agent: &'static str,
    /// As the table has it.
    pub(super) class: &'static str,
}

pub(super) const CLIENTS: [Client; 5] = [
    Client { agent: "curl/8.14.1", class: "curl" },
    Client { agent: "cargo/1.95.0 (f2d3ce0bd 2026-03-21)", class: "cargo" },
    Client { agent: "Debian APT-HTTP/1.3 (3.0.3)", class: "apt" },
    Client {
        agent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        class: "browser",
    },
    Client { agent: "", class: "other" },
];
