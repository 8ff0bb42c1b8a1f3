//! Flags that every service has. Each can be given in the environment too.

use std::net::SocketAddr;

#[derive(Debug, Clone, clap::Args)]
pub struct Process {
    /// Address and port to serve HTTP on: the API of the service, /healthz, /readyz and /metrics.
    #[arg(long, env = "LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// How to write the log.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
    /// How long a drain may take after SIGTERM before the process ends anyway, in seconds.
    #[arg(long, env = "DRAIN_S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub drain_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Nats {
    /// NATS servers with user and password, separated by commas: `nats://user:password@host:4222`.
    #[arg(long, alias = "nats", env = "NATS_URL", value_name = "URL", hide_env_values = true)]
    pub nats_url: NatsUrl,
}

/// One or more server addresses that async-nats accepts.
#[derive(Clone)]
pub struct NatsUrl {
    pub servers: Vec<async_nats::ServerAddr>,
}

impl std::fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts = self.servers.iter().map(|server| format!("{}:{}", server.host(), server.port()));
        f.debug_list().entries(hosts).finish()
    }
}

impl std::str::FromStr for NatsUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let servers: Result<Vec<_>, _> = text.split(',').map(|part| part.trim().parse()).collect();
        match servers {
            Ok(servers) => Ok(Self { servers }),
            Err(error) => Err(format!("not a NATS address: {error}")),
        }
    }
}
