//! The options of what people ask: history, why, what-if, explain, drill and top.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Format, FormatArgs};

/// `howdah history`
#[derive(Debug, Clone, Default, Args)]
pub struct HistoryArgs {
    /// Which cluster, and how to write it.
    #[command(flatten)]
    pub reader: FormatArgs,
    /// Who, why, the parts in milliseconds, positions, what was lost: the last 50 changes.
    #[arg(short, long)]
    pub verbose: bool,
}

/// `howdah why`
#[derive(Debug, Clone, Default, Args)]
pub struct WhyArgs {
    /// Nothing: why the leader leads. `not NAME`: each rule that keeps a member from leading. `restart-pending`.
    #[arg(value_name = "QUESTION")]
    pub question: Vec<String>,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// `howdah what-if`
#[derive(Debug, Clone, Args)]
pub struct WhatIfArgs {
    /// What.
    #[command(subcommand)]
    pub command: WhatIfCommand,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub format: Format,
}

/// What can be imagined.
#[derive(Debug, Clone, Subcommand)]
pub enum WhatIfCommand {
    /// A node with everything on it dies now.
    Kill {
        /// Its name.
        node: String,
    },
}

/// What is drilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrillKind {
    /// A planned change of the primary.
    Switchover,
    /// The postmaster of the primary is killed.
    KillPostgres,
    /// Everything on the primary's node is killed, as a power cut would.
    KillNode,
    /// Everything on the primary's node is stopped in its tracks, and goes on later.
    Freeze,
    /// The primary's node is cut off from the others.
    Partition,
}

impl DrillKind {
    /// The word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::KillPostgres => "kill-postgres",
            Self::KillNode => "kill-node",
            Self::Freeze => "freeze",
            Self::Partition => "partition",
        }
    }

    /// What it means for clients.
    pub fn consequence(self) -> &'static str {
        match self {
            Self::Switchover => {
                "Clients cannot write for some tenths of a second; their sessions on the old primary end."
            }
            Self::KillPostgres => "All sessions end; writes are possible again when PostgreSQL has recovered.",
            Self::KillNode | Self::Freeze | Self::Partition => {
                "Nobody can write until the leader's lease has run out and another node has taken over."
            }
        }
    }
}

/// `howdah drill`
#[derive(Debug, Args)]
pub struct DrillArgs {
    /// What.
    #[arg(value_enum)]
    pub kind: DrillKind,
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// The new leader of a switchover. Default: the best standby.
    #[arg(long)]
    pub candidate: Option<String>,
    /// Clients that write.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub writers: u16,
    /// Not through the routers.
    #[arg(long)]
    pub direct: bool,
    /// The database user. Default: the superuser of the file of -c, else PGUSER.
    #[arg(short = 'U', long)]
    pub username: Option<String>,
    /// The database. Default: PGDATABASE, else postgres.
    #[arg(short, long)]
    pub dbname: Option<String>,
    /// Write the result with a plot as one HTML page, too.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah top`
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Look every so many seconds.
    #[arg(short = 'w', long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub interval: u16,
}

/// `howdah explain`
#[derive(Debug, Clone, Default, Args)]
pub struct ExplainArgs {
    /// The journal of a node: `decisions.jsonl` in its raft.data_dir. Default: what a node has in memory.
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Of this member, over REST.
    #[arg(short, long, conflicts_with = "journal")]
    pub member: Option<String>,
    /// Only so many, the newest.
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub last: Option<usize>,
    /// All facts of each decision, too.
    #[arg(long)]
    pub facts: bool,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}
