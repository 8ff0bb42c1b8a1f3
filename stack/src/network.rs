//! A network of its own for one child, joined to this machine by a link that can be cut.
//!
//! ```text
//! this machine: 198.18.x.y (cmZ) ---- link ---- 198.18.x.y+1 (eth0): the child, which sees nothing else
//! ```
//! It is a namespace without a name, held by a child that sleeps: the kernel takes it away, and the link with it, when
//! the last process in it ends. So nothing is left behind, however a test ends.

use crate::{
    process::{Command, Process},
    programs,
};
use anyhow::{Result, bail};
use nix::unistd::Uid;
use rand::Rng;
use std::{
    fs,
    net::Ipv4Addr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// Every command here takes milliseconds.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// 198.18.0.0/15 is kept for tests of networks. Four addresses a link.
const LINKS: u32 = 1 << 15;
/// As with ports: a few links among thousands.
const TRIES: usize = 50;
/// Inside; no other is there but the loopback.
const DEVICE: &str = "eth0";

#[derive(Debug)]
pub struct Network {
    /// Ends the namespace.
    holder: Process,
    number: u32,
    log: PathBuf,
    // Keeps the addresses from other stacks of this machine, as `ports` does.
    _reservation: UnixListener,
}

impl Network {
    /// Why this machine or user can have none, if so.
    pub fn obstacle() -> Option<String> {
        if !Uid::effective().is_root() {
            return Some("only root makes networks".into());
        }
        if let Err(error) = programs::IP.find() {
            return Some(error.to_string());
        }
        let made = std::process::Command::new("unshare").args(["--net", "true"]).output();
        match made {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()),
            Err(error) => Some(format!("unshare: {error}")),
        }
    }

    /// Whether `test` can have one. If not it is skipped, and says so; but not on a CI that runs as root: that is where all
    /// tests are meant to run, and nobody would read that one did not.
    pub fn available(test: &str) -> Result<bool> {
        let Some(why) = Self::obstacle() else { return Ok(true) };
        let must_run = Uid::effective().is_root() && std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
        eprintln!("{}", skipped(test, &why, must_run)?);
        Ok(false)
    }

    /// Makes it, with its link up. What its programs print is kept in `log_dir`.
    pub async fn start(log_dir: &Path) -> Result<Self> {
        let Some((number, reservation)) = (0..TRIES).find_map(|_| reserve()) else {
            bail!("no free addresses for a link after {TRIES} tries");
        };
        let holder = Command::new("network", "unshare", log_dir).args(["--net", "sleep", "infinity"]);
        let holder = holder.spawn().await?;
        let ours = fs::read_link("/proc/self/ns/net")?;
        let namespace = format!("/proc/{}/ns/net", holder.pid());
        let is_apart = async || match fs::read_link(&namespace)? {
            theirs if theirs != ours => Ok(()),
            _ => bail!("it is still in our network"),
        };
        holder.ready(COMMAND_TIMEOUT, is_apart).await?;
        let this = Self { holder, number, log: log_dir.to_owned(), _reservation: reservation };
        this.link().await?;
        Ok(this)
    }

    /// Where this machine is reached from inside. It stays while the link is cut.
    pub fn host(&self) -> Ipv4Addr {
        address(self.number, 1)
    }

    /// This machine's end of the link.
    pub fn device(&self) -> String {
        format!("cm{}", self.number)
    }

    /// Cuts the link: from now on packets get nowhere, and no connection hears of it.
    pub async fn cut(&self) -> Result<()> {
        self.ip_inside(&["link", "set", DEVICE, "down"]).await
    }

    pub async fn heal(&self) -> Result<()> {
        self.ip_inside(&["link", "set", DEVICE, "up"]).await
    }

    /// The same command, run inside.
    pub fn inside(&self, mut command: Command) -> Result<Command> {
        let program = std::mem::replace(&mut command.program, programs::NSENTER.find()?);
        // Only the network: with `ip netns exec` it would lose sight of its cgroups.
        let mut args = vec![format!("--net=/proc/{}/ns/net", self.holder.pid()).into(), program.into()];
        args.append(&mut command.args);
        command.args = args;
        Ok(command)
    }

    async fn link(&self) -> Result<()> {
        let (device, holder) = (self.device(), self.holder.pid().to_string());
        let with_mask = |host| format!("{}/30", address(self.number, host));
        let (outside, inside) = (with_mask(1), with_mask(2));
        self.ip(&["link", "add", &device, "type", "veth", "peer", "name", DEVICE, "netns", &holder]).await?;
        self.ip(&["address", "add", &outside, "dev", &device]).await?;
        self.ip(&["link", "set", &device, "up"]).await?;
        self.ip_inside(&["address", "add", &inside, "dev", DEVICE]).await?;
        self.ip_inside(&["link", "set", "lo", "up"]).await?;
        self.heal().await
    }

    async fn ip(&self, arguments: &[&str]) -> Result<()> {
        self.command(arguments)?.run(COMMAND_TIMEOUT).await
    }

    async fn ip_inside(&self, arguments: &[&str]) -> Result<()> {
        self.inside(self.command(arguments)?)?.run(COMMAND_TIMEOUT).await
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        Ok(Command::new("ip", programs::IP.find()?, &self.log).args(arguments.iter().copied()))
    }
}

fn skipped(test: &str, why: &str, must_run: bool) -> Result<String> {
    if must_run {
        bail!("{test} has to run on a CI, and cannot as this machine has no networks to cut: {why}");
    }
    Ok(format!("SKIPPED {test}: this machine has no networks to cut: {why}"))
}

fn reserve() -> Option<(u32, UnixListener)> {
    let number = rand::rng().random_range(0..LINKS);
    let name = UnixAddr::from_abstract_name(format!("cratemill-stack-link-{number}")).ok()?;
    Some((number, UnixListener::bind_addr(&name).ok()?))
}

fn address(link: u32, host: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + 4 * link + host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_test_is_named_and_on_a_ci_it_is_a_failure() {
        assert!(skipped("cut", "no ip", false).unwrap().starts_with("SKIPPED cut: "));
        let error = skipped("cut", "no ip", true).unwrap_err().to_string();
        assert!(error.starts_with("cut has to run") && error.ends_with("no ip"), "{error}");
    }
}
