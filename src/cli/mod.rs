//! The commands that a person types.
//!
//! ```text
//! args -> discover (which addresses) -> client (HTTP, one after the other) -> one file per group of verbs -> render
//! ```
//! Readers show what one node knows; changers say what they will do, ask, and send one request. Deliberately absent:
//! anything that a node does itself.

pub mod args;
mod change;
mod client;
mod discover;
mod drill;
mod edit_config;
mod file;
mod kv;
mod kv_txn;
mod list;
mod output;
mod query;
mod render;
mod standby_cluster;
mod store_members;
mod takeover;
mod timeline;
mod top;
mod upkeep;
mod why;

use std::process::ExitCode;

use std::fmt;

use anyhow::Context;

use self::args::{Command, CommandLine, ConfigCommand, MemberCommand, Target};
use self::client::Client;
use crate::config::Config;

/// Exit codes.
pub mod exit {
    /// It was tried and did not work.
    pub const FAILED: u8 = 1;
    /// The command makes no sense.
    pub const USAGE: u8 = 2;
    /// A rule says no.
    pub const REFUSED: u8 = 3;
    /// The store cannot decide anything.
    pub const NO_QUORUM: u8 = 4;
    /// A signal ended it.
    pub const INTERRUPTED: u8 = 130;
}

/// A command that did not succeed: what to say, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// One of [`exit`].
    pub exit: u8,
    /// What to say; the chain of causes belongs to it.
    pub error: anyhow::Error,
}

impl Failure {
    fn new(exit: u8, text: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self { exit, error: anyhow::Error::msg(text) }
    }
}

impl fmt::Display for Failure {
    /// One line: the error with its causes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: exit::FAILED, error }
    }
}

type Outcome<T = ()> = Result<T, Failure>;

/// Runs a command. `run_node` is what `howdah run` does with a checked configuration: it returns when the node has
/// stopped.
///
/// # Errors
/// What to say and how to exit.
pub fn run(line: CommandLine, run_node: impl FnOnce(Config) -> anyhow::Result<()>) -> Outcome<ExitCode> {
    let target = line.target;
    let done = match line.command {
        Command::Dev(args) => return Ok(crate::dev::main(args)?),
        Command::Run(args) => file::run(&args, run_node),
        Command::Config(ConfigCommand::Check { file }) => file::check(&file),
        Command::Config(ConfigCommand::Explain { key }) => file::explain(&key),
        Command::Config(ConfigCommand::Example { minimal }) => file::example(minimal),
        // Patroni's record outlives its cluster and is removed in the end. Ours lives and goes with the nodes.
        Command::Remove(_) => Err(Failure::new(
            exit::REFUSED,
            "a cluster's record lives on its nodes, so there is nothing to remove while they run. To end a cluster, stop \
             its nodes and move their raft.data_dir away; PostgreSQL's data stays. To take one member away: \
             howdah member remove NAME",
        )),
        Command::Member(MemberCommand::ForceNewCluster { file, reason, force }) => {
            file::force_new_cluster(&file, &reason, force)
        }
        Command::Version(args) if args.cluster.is_none() => file::version(args.format),
        command => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
            runtime.block_on(remote(command, &target))
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Commands that talk to a cluster.
async fn remote(command: Command, target: &Target) -> Outcome {
    let mut client = Client::new(discover::find(target)?)?;
    match command {
        Command::List(args) => list::list(&client, &args).await,
        Command::Topology(args) => list::topology(&client, &args).await,
        Command::History(args) => list::history(&client, &args).await,
        Command::Drill(args) => drill::drill(&client, &args).await,
        Command::Top(args) => top::top(&client, &args).await,
        Command::Why(args) => why::why(&client, &args).await,
        Command::WhatIf(args) => why::what_if(&client, &args).await,
        Command::Explain(args) => why::explain(&why::journal(&client, &args).await?, &args),
        Command::Switchover(args) => change::switchover(&client, &args).await,
        Command::Failover(args) => change::failover(&client, &args).await,
        Command::Pause(args) => change::pause(&client, &args, true).await,
        Command::Resume(args) => change::pause(&client, &args, false).await,
        Command::DemoteCluster(args) => standby_cluster::demote(&client, &args).await,
        Command::PromoteCluster(args) => standby_cluster::promote(&client, &args).await,
        Command::ShowConfig(args) => edit_config::show(&client, &args).await,
        Command::EditConfig(args) => edit_config::edit(&client, &args).await,
        Command::Restart(args) => upkeep::restart(&client, &args).await,
        Command::Reload(args) => upkeep::reload(&client, &args).await,
        Command::Reinit(args) => upkeep::reinit(&client, &args).await,
        Command::Flush(args) => upkeep::flush(&client, &args).await,
        Command::Adopt(args) => takeover::adopt(&client, &args).await,
        Command::Release(args) => takeover::release(&client, &args).await,
        Command::Dsn(args) => query::dsn(&client, &args).await,
        Command::Query(args) => query::query(&client, &args).await,
        Command::Version(args) => list::versions(&client, &args).await,
        Command::Kv(args) => kv::run(&mut client, args).await,
        Command::Member(command) => store_members::run(&client, command).await,
        Command::Run(_) | Command::Config(_) | Command::Dev(_) | Command::Remove(_) => Ok(()),
    }
}
