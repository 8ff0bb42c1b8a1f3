//! `cratemill-dispatcher`: see the library.

use cratemill_dispatcher::{app, audit::command, config::Invocation};
use std::process::ExitCode;

fn main() -> ExitCode {
    match Invocation::parse() {
        Invocation::Serve(config) => {
            let process = config.process.clone();
            cratemill_service::run("dispatcher", &process, |context| app::run(*config, context))
        }
        Invocation::Audit(mut config) => {
            config.database.database_url.allow_long_statements();
            command::main(&config)
        }
    }
}
