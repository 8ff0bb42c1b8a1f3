//! `cratemill-dispatcher`: see the library.

use clap::Parser;
use cratemill_dispatcher::{app, config::Config};
use std::process::ExitCode;

fn main() -> ExitCode {
    let config = Config::parse();
    let process = config.process.clone();
    cratemill_service::run("dispatcher", &process, |context| app::run(config, context))
}
