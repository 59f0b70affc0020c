//! `howdah dev`: a whole cluster of real nodes on one machine, and the faults to try it with.
//!
//! ```text
//! first terminal    prepare (directory, ports, files) -> up (agents as children, what happens, Ctrl-C)
//! second terminal   faults (kill, stop, freeze, thaw, start, partition, heal) and status, by processes and REST
//! ```
//! Everything is real: the same binary, the same configuration file, the same guardian and PostgreSQL as on
//! three hosts. The nodes reach each other through a process that can cut one off (`links`). Deliberately absent: any
//! channel into a node that an operator would not have too.
//! The end-to-end tests build their clusters from the same parts.

use std::process::ExitCode;

use anyhow::{Context, bail};

pub mod agent_process;
pub mod args;
pub mod control;
pub mod faults;
pub mod layout;
pub mod links;
pub mod load_line;
pub mod log_tail;
pub mod node_yaml;
pub mod place;
pub mod ports;
pub mod prepare;
pub mod process_table;
pub mod processes;
pub mod rest;
pub mod screen;
pub mod status;
pub mod up;
pub mod write_probe;

pub use args::{DevArgs, DevCommand};

/// Runs `howdah dev` or one of its commands.
///
/// # Errors
/// Whatever stopped it, as a sentence that names the cause and the remedy.
pub fn main(args: DevArgs) -> anyhow::Result<ExitCode> {
    let Some(command) = &args.command else {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        let outcome = runtime.block_on(up::run(&args));
        runtime.shutdown_background();
        return outcome;
    };
    if args.fresh || args.load || args.nodes.is_some() {
        bail!(
            "understand the command: --fresh, --load and --nodes belong to `howdah dev` itself, which starts the cluster"
        );
    }
    let layout = place::for_second_terminal(args.dir.as_deref())?;
    match command {
        DevCommand::Kill(target) => faults::kill(&layout, &target.node),
        DevCommand::Stop(target) => faults::stop(&layout, &target.node),
        DevCommand::Freeze(target) => faults::freeze(&layout, &target.node),
        DevCommand::Thaw(target) => faults::thaw(&layout, &target.node),
        DevCommand::Start(target) => faults::start(&layout, &target.node),
        DevCommand::Partition(target) => faults::partition(&layout, &target.node),
        DevCommand::Heal(target) => faults::heal(&layout, target.node.as_deref()),
        DevCommand::Links => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
            runtime.block_on(links::run(layout))
        }
        DevCommand::Status(options) => status::run(&layout, options.format),
    }
}
