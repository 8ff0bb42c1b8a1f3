//! The builder's key: in a file, or in an ssh-agent that never shows it.

use anyhow::{Context, anyhow, bail};
use cratemill_protocol::sshsig;
use ssh_agent_client_rs::{Client, Identity as AgentIdentity};
use ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};
use std::{
    io::{BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// An agent may ask its owner to confirm, but a server waits for a login only about this long.
const SIGN_WAIT: Duration = Duration::from_secs(10);
const PASSPHRASE_VARIABLE: &str = "KEY_PASSPHRASE";

/// Where the key is.
#[derive(Debug, Clone)]
pub enum Source {
    File { path: PathBuf, passphrase_file: Option<PathBuf> },
    Agent { fingerprint: Option<String> },
}

#[derive(Debug, Clone)]
pub struct Identity {
    public: PublicKey,
    signer: Arc<Signer>,
}

enum Signer {
    Key(Box<PrivateKey>),
    Agent { socket: PathBuf },
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(_) => f.write_str("Key(..)"),
            Self::Agent { socket } => f.debug_tuple("Agent").field(socket).finish(),
        }
    }
}

impl Identity {
    pub fn load(source: &Source) -> anyhow::Result<Self> {
        match source {
            Source::File { path, passphrase_file } => Self::from_file(path, passphrase_file.as_deref()),
            Source::Agent { fingerprint } => {
                let socket = std::env::var_os("SSH_AUTH_SOCK").context("--agent needs SSH_AUTH_SOCK")?;
                Self::from_agent(Path::new(&socket), fingerprint.as_deref())
            }
        }
    }

    fn from_file(path: &Path, passphrase_file: Option<&Path>) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the key {}", path.display()))?;
        let key = PrivateKey::from_openssh(&text)
            .map_err(|error| anyhow!("{} is not an OpenSSH private key: {error}", path.display()))?;
        let key = if key.is_encrypted() {
            key.decrypt(passphrase(path, passphrase_file)?)
                .map_err(|_| anyhow!("the passphrase does not open {}", path.display()))?
        } else {
            key
        };
        Ok(Self::from_key(key))
    }

    pub fn from_key(key: PrivateKey) -> Self {
        Self { public: key.public_key().clone(), signer: Arc::new(Signer::Key(Box::new(key))) }
    }

    pub fn from_agent(socket: &Path, fingerprint: Option<&str>) -> anyhow::Result<Self> {
        let mut client = Client::connect(socket)
            .with_context(|| format!("no ssh-agent answers at {}", socket.display()))?;
        let identities = client.list_all_identities().context("the ssh-agent does not list its keys")?;
        let mut keys: Vec<PublicKey> = identities
            .into_iter()
            .filter_map(|identity| match identity {
                AgentIdentity::PublicKey(key) => Some(key.into_owned()),
                AgentIdentity::Certificate(_) => None,
            })
            .filter(|key| fingerprint.is_none_or(|wanted| sshsig::fingerprint(key) == wanted))
            .collect();
        let public = match (keys.len(), fingerprint) {
            (1, _) => keys.remove(0),
            (0, Some(wanted)) => bail!("the ssh-agent has no key {wanted}"),
            (0, None) => bail!("the ssh-agent has no key: add one with ssh-add"),
            (count, _) => bail!("the ssh-agent has {count} keys: choose one with --fingerprint"),
        };
        Ok(Self { public, signer: Arc::new(Signer::Agent { socket: socket.to_owned() }) })
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub fn fingerprint(&self) -> String {
        sshsig::fingerprint(&self.public)
    }

    /// An armoured SSHSIG over `text`.
    pub async fn sign(&self, namespace: &'static str, text: Vec<u8>) -> anyhow::Result<String> {
        let identity = self.clone();
        let signing = tokio::task::spawn_blocking(move || identity.sign_blocking(namespace, &text));
        tokio::time::timeout(SIGN_WAIT, signing)
            .await
            .map_err(|_| anyhow!("the key did not sign within {} s", SIGN_WAIT.as_secs()))??
    }

    fn sign_blocking(&self, namespace: &str, text: &[u8]) -> anyhow::Result<String> {
        let signature = match &*self.signer {
            Signer::Key(key) => key.sign(namespace, HashAlg::Sha512, text)?,
            Signer::Agent { socket } => {
                let signed = SshSig::signed_data(namespace, HashAlg::Sha512, text)?;
                let mut client = Client::connect(socket).context("the ssh-agent is gone")?;
                let signature = client.sign(&self.public, &signed).context("the ssh-agent does not sign")?;
                SshSig::new(self.public.key_data().clone(), namespace, HashAlg::Sha512, signature)?
            }
        };
        Ok(signature.to_pem(LineEnding::LF)?)
    }
}

fn passphrase(key: &Path, file: Option<&Path>) -> anyhow::Result<String> {
    if let Some(file) = file {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the passphrase file {}", file.display()))?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    if let Ok(text) = std::env::var(PASSPHRASE_VARIABLE) {
        return Ok(text);
    }
    if std::io::stdin().is_terminal() {
        return ask(key).context("cannot read the passphrase from the terminal");
    }
    bail!("{} is encrypted: give --passphrase-file or {PASSPHRASE_VARIABLE}", key.display())
}

/// Asks on the terminal without showing what is typed.
fn ask(key: &Path) -> anyhow::Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    eprint!("Passphrase of {}: ", key.display());
    std::io::stderr().flush()?;
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden)?;
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &shown)?;
    eprintln!();
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
