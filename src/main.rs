//! The `howdah` binary: reads the command line, runs the command, prints the error with its causes, exits with its
//! code (0 ok, 1 failed, 2 usage, 3 refused by a rule, 4 no quorum).

use std::process::ExitCode;

use anyhow::Context;
use howdah::cli::{self, args::CommandLine};
use howdah::config::Config;
use howdah::telemetry::log::say;

/// The store makes and drops many small things on several threads; the system's allocator takes twice as long for it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The guardian must stay small: nothing else starts before it.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|verb| verb == "guardian") {
        return howdah::guardian::args::main(args);
    }
    match cli::run(CommandLine::read(), run_node) {
        Ok(code) => code,
        Err(failure) => {
            say(&format!("howdah: {failure}"));
            ExitCode::from(failure.exit)
        }
    }
}

/// What `howdah run` does once the configuration is checked and logs are written.
fn run_node(config: Config) -> anyhow::Result<()> {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // A node whose consensus or agent has lost a task must not look alive: end, and let it be started again.
        // The guardian keeps PostgreSQL running inside the permit.
        default(panic);
        std::process::exit(101);
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(howdah::node::run(config));
    runtime.shutdown_background();
    outcome
}
