//! `cratemill-live`: see the library.

use clap::Parser;
use cratemill_live::config::Config;
use std::process::ExitCode;

fn main() -> ExitCode {
    let config = Config::parse();
    let process = config.process.clone();
    cratemill_service::run("live", &process, |context| cratemill_live::run(config, context))
}
