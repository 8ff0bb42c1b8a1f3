//! The API node: REST, the builders' WebSocket, upload and download.

use clap::Parser;
use cratemill_api::Config;
use std::process::ExitCode;

fn main() -> ExitCode {
    let config = Config::parse();
    let process = config.process.clone();
    cratemill_service::run("api", &process, |context| cratemill_api::run(config, context))
}
