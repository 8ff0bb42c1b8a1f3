//! `cratemill-live`: see the library.

use cratemill_live::{auth::command, config::Invocation};
use std::process::ExitCode;

fn main() -> ExitCode {
    match Invocation::parse() {
        Invocation::Serve(config) => {
            let process = config.process.clone();
            cratemill_service::run("live", &process, |context| cratemill_live::serve(*config, context))
        }
        Invocation::Token(config) => {
            println!("{}", command::token(config));
            ExitCode::SUCCESS
        }
    }
}
