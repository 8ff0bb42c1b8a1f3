//! `cratemill-live token`: prints a token.

use crate::auth::token::{Claims, Pattern, Secret, Signer};
use cratemill_service::clock;

/// Prints a token for user topics, signed with the secret of the live nodes.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "token")]
pub struct Config {
    /// The secret of the live nodes, at least 32 bytes.
    #[arg(long, env = "LIVE_TOKEN_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub live_token_secret: Secret,
    /// A topic to publish to, or many: `topic.team.>`. May be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub publish: Vec<Pattern>,
    /// A private topic to follow, or many: `topic.private.team.>`. May be given several times.
    #[arg(long, value_name = "PATTERN")]
    pub subscribe: Vec<Pattern>,
    /// Seconds from now on for which it is good.
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u32).range(1..))]
    pub expires_in_s: u32,
    /// Who gets it.
    #[arg(long, value_name = "NAME")]
    pub sub: Option<String>,
}

pub fn token(config: Config) -> String {
    let exp = clock::now_s() + i64::from(config.expires_in_s);
    let Config { publish, subscribe, sub, .. } = config;
    Signer::new(&config.live_token_secret).sign(&Claims { exp, nbf: None, sub, publish, subscribe })
}
