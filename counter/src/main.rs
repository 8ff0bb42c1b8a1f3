//! `cratemill-counter`: see the library.

use clap::Parser;
use cratemill_counter::{app, config::Config};
use std::process::ExitCode;

fn main() -> ExitCode {
    let config = Config::parse();
    let process = config.process.clone();
    cratemill_service::run("counter", &process, |context| app::run(config, context))
}
