//! The command line: verbs and options, patronictl's wherever it has one.
//!
//! A new verb is a variant of [`Command`] here, and an arm in `cli::run`. Deliberately absent: what the verbs do.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod questions;

pub use questions::{DrillArgs, DrillKind, ExplainArgs, HistoryArgs, TopArgs, WhatIfArgs, WhatIfCommand, WhyArgs};

use crate::dev::DevArgs;

/// Keeps a PostgreSQL cluster available: one binary on each node.
#[derive(Debug, Parser)]
#[command(name = "howdah", version, max_term_width = 100, arg_required_else_help = true)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Where the cluster is.
    #[command(flatten)]
    pub target: Target,
}

impl CommandLine {
    /// Reads the command line of this process. Behind `query`, `-c` is the SQL, as patronictl has it; elsewhere it is a
    /// node's file.
    pub fn read() -> Self {
        Self::parse_from(sql_behind_query(std::env::args_os().collect()))
    }
}

fn sql_behind_query(mut args: Vec<OsString>) -> Vec<OsString> {
    // Options that stand before the verb and take a value.
    let mut place = 1;
    while let Some(arg) = args.get(place).and_then(|arg| arg.to_str()) {
        match arg {
            "-c" | "--config-file" | "--url" | "--cacert" | "--cert" | "--key" => place += 2,
            _ if arg.starts_with('-') => place += 1,
            _ => break,
        }
    }
    if args.get(place).is_some_and(|verb| verb == "query") {
        for arg in args.iter_mut().skip(place).filter(|arg| *arg == "-c") {
            *arg = "--command".into();
        }
    }
    args
}

/// Where the cluster is. Without any of these: a cluster that `howdah dev` started in this directory, else
/// http://127.0.0.1:8008.
#[derive(Debug, Clone, Default, Args)]
pub struct Target {
    /// A node's file: all its raft members are tried until one answers, with the password from ctl.authentication.
    #[arg(
        short = 'c',
        long = "config-file",
        global = true,
        value_name = "FILE",
        help_heading = "Where the cluster is"
    )]
    pub config_file: Option<PathBuf>,
    /// The main port of a node, for example http://10.0.0.1:8008, or https://. May be given several times.
    #[arg(long = "url", global = true, value_name = "URL", help_heading = "Where the cluster is")]
    pub urls: Vec<String>,
    /// Believe whoever answers; with a certificate of your own, without a look at the host name.
    #[arg(short = 'k', long, global = true, help_heading = "Where the cluster is")]
    pub insecure: bool,
    /// Who signs the nodes' certificates, instead of ctl.cacert in the node's file.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Where the cluster is")]
    pub cacert: Option<PathBuf>,
    /// The certificate to show to nodes that ask for one, instead of ctl.certfile.
    #[arg(long = "cert", global = true, value_name = "FILE", help_heading = "Where the cluster is")]
    pub cert_file: Option<PathBuf>,
    /// Its key, where that is another file.
    #[arg(
        long = "key",
        global = true,
        value_name = "FILE",
        requires = "cert_file",
        help_heading = "Where the cluster is"
    )]
    pub key_file: Option<PathBuf>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs this machine's node, in the foreground.
    Run(RunArgs),
    /// Shows the members: roles, states, positions, lag.
    #[command(visible_alias = "status")]
    List(ListArgs),
    /// Shows the members as a tree of who follows whom.
    Topology(WatchArgs),
    /// Shows the changes of the timeline; with --verbose what happened, why, and how long each part took.
    History(HistoryArgs),
    /// Says why who leads, what would happen if it died, and what keeps a member from leading.
    Why(WhyArgs),
    /// Runs the decision core on a copy of what is known now.
    WhatIf(WhatIfArgs),
    /// Makes recorded decisions once more, with all that they were made on.
    Explain(ExplainArgs),
    /// Moves the primary in good order; no commit is lost.
    Switchover(SwitchoverArgs),
    /// Makes a member the primary although the old one may be gone.
    Failover(FailoverArgs),
    /// Harms the cluster on purpose, under clients, and says what it has cost.
    Drill(DrillArgs),
    /// Shows the cluster live in the terminal.
    Top(TopArgs),
    /// Takes howdah's hands off: nothing is started, stopped, promoted or demoted.
    Pause(PauseArgs),
    /// Ends a pause.
    Resume(PauseArgs),
    /// Has the whole cluster follow a primary outside.
    DemoteCluster(DemoteClusterArgs),
    /// Makes a cluster that follows a primary outside independent of it.
    PromoteCluster(PromoteClusterArgs),
    /// Says how a cluster, or a member of it, is taken away for good; removes nothing itself.
    Remove(RemoveArgs),
    /// Shows the settings that all members share.
    ShowConfig(ShowConfigArgs),
    /// Changes the settings that all members share.
    EditConfig(EditConfigArgs),
    /// Restarts PostgreSQL on members.
    Restart(RestartArgs),
    /// Makes members read their files again.
    Reload(ReloadArgs),
    /// Replaces a member's data directory by a new copy; the old one is moved aside.
    Reinit(ReinitArgs),
    /// Takes over a PostgreSQL that others have run so far, as it runs, after a report about it.
    Adopt(AdoptArgs),
    /// Lets PostgreSQL go on without howdah, on all members.
    Release(ReleaseArgs),
    /// Drops what is scheduled: a restart or a switchover.
    Flush(FlushArgs),
    /// Shows how to connect to a member.
    Dsn(DsnArgs),
    /// Runs SQL on a member.
    Query(QueryArgs),
    /// Reads and writes keys of the store, as etcdctl does.
    Kv(KvArgs),
    /// The members of the store.
    #[command(subcommand)]
    Member(MemberCommand),
    /// A node's file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// A whole cluster on this machine: three real nodes, one directory, and the faults to try it with.
    Dev(DevArgs),
    /// Shows this program's version, and with a cluster's name those of its members.
    Version(VersionArgs),
}

/// `howdah run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The node's file, or a directory of *.yml files.
    pub file: PathBuf,
    /// Only check the file.
    #[arg(long)]
    pub check: bool,
}

/// How a table is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Pretty,
    /// One JSON document.
    Json,
    /// One YAML document.
    #[value(alias = "yml")]
    Yaml,
    /// Values between tabs.
    Tsv,
}

/// For readers.
#[derive(Debug, Clone, Default, Args)]
pub struct FormatArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// For readers that can go on reading.
#[derive(Debug, Clone, Default, Args)]
pub struct WatchArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Repeat every so many seconds.
    #[arg(short = 'w', long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub watch: Option<u32>,
    /// Repeat every two seconds.
    #[arg(short = 'W')]
    pub watch_2s: bool,
}

/// `howdah list`
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// Repetition.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// Show all columns, also empty ones.
    #[arg(short, long)]
    pub extended: bool,
    /// Print the time above each table.
    #[arg(short, long)]
    pub timestamp: bool,
}

/// `howdah switchover`
#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// The present leader; refused if it is another. Default: whoever it is.
    #[arg(long, visible_alias = "primary")]
    pub leader: Option<String>,
    /// The new leader. Default: the best standby.
    #[arg(long)]
    pub candidate: Option<String>,
    /// When: a time with its zone, such as 2026-11-22T20:00+00:00, or `now`.
    #[arg(long, default_value = "now")]
    pub scheduled: String,
    /// Drop the switchover that is scheduled.
    #[arg(long, conflicts_with_all = ["leader", "candidate", "force"])]
    pub cancel: bool,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah failover`
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// The new leader.
    #[arg(long)]
    pub candidate: String,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah pause`, `howdah resume`
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Wait until every member has noticed.
    #[arg(long)]
    pub wait: bool,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah demote-cluster`
#[derive(Debug, Args)]
pub struct DemoteClusterArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Where the primary outside listens; several with commas.
    #[arg(long)]
    pub host: Option<String>,
    /// On which port.
    #[arg(long)]
    pub port: Option<u16>,
    /// Fetches WAL from an archive.
    #[arg(long, value_name = "COMMAND")]
    pub restore_command: Option<String>,
    /// The slot to use there. It must exist.
    #[arg(long, value_name = "NAME")]
    pub primary_slot_name: Option<String>,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah remove`
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The cluster's name.
    pub cluster: Option<String>,
}

/// `howdah promote-cluster`
#[derive(Debug, Args)]
pub struct PromoteClusterArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah show-config`
#[derive(Debug, Args)]
pub struct ShowConfigArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// How to write it; pretty is YAML.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// With all defaults spelled out.
    #[arg(long)]
    pub effective: bool,
}

/// `howdah edit-config`
#[derive(Debug, Args)]
pub struct EditConfigArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Do not show what changes.
    #[arg(short, long)]
    pub quiet: bool,
    /// A setting, dots between the levels; `key=null` removes it.
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// A PostgreSQL parameter; `name=null` removes it.
    #[arg(short, long = "pg", value_name = "NAME=VALUE")]
    pub pg: Vec<String>,
    /// A file of settings to merge in; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub apply: Option<PathBuf>,
    /// A file that takes the place of all settings; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["set", "pg", "apply"])]
    pub replace: Option<PathBuf>,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// Which members, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleFilter {
    /// Who leads.
    Leader,
    /// Who accepts writes.
    Primary,
    /// The leader of a standby cluster.
    StandbyLeader,
    /// Who follows.
    Replica,
    /// The same.
    Standby,
    /// Everybody.
    Any,
}

/// `howdah restart`
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// The cluster's name, or members, or both, the name first; without members all, the leader last.
    #[arg(required = true, value_name = "CLUSTER|MEMBER")]
    pub names: Vec<String>,
    /// Only members in this role.
    #[arg(short, long, value_enum)]
    pub role: Option<RoleFilter>,
    /// Only one of them, whichever it is.
    #[arg(long)]
    pub any: bool,
    /// Only those whose settings wait for a restart.
    #[arg(long)]
    pub pending: bool,
    /// Only those with a PostgreSQL that is older, such as 16.4.
    #[arg(long, value_name = "VERSION")]
    pub pg_version: Option<String>,
    /// When: a time with its zone, or `now`.
    #[arg(long, default_value = "now")]
    pub scheduled: String,
    /// How long each may take, such as 60 or 1min.
    #[arg(long)]
    pub timeout: Option<String>,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah reload`
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The cluster's name, or members, or both, the name first; without members all.
    #[arg(required = true, value_name = "CLUSTER|MEMBER")]
    pub names: Vec<String>,
    /// Only members in this role.
    #[arg(short, long, value_enum)]
    pub role: Option<RoleFilter>,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah reinit`
#[derive(Debug, Args)]
pub struct ReinitArgs {
    /// Members; the cluster's name may stand before them.
    #[arg(required = true, value_name = "CLUSTER|MEMBER")]
    pub names: Vec<String>,
    /// Copy from the leader, not from another replica.
    #[arg(long)]
    pub from_leader: bool,
    /// Wait until the copies are there.
    #[arg(long)]
    pub wait: bool,
    /// Do not ask, and cancel a long task that runs there.
    #[arg(long)]
    pub force: bool,
}

/// `howdah adopt`
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// On which member: the primary first, then its standbys.
    pub member: String,
    /// Show the report, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// How to write the report; tsv is as pretty.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah release`
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// `howdah flush`
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// The cluster's name and members, if wanted, and last what is dropped: `restart` or `switchover`.
    #[arg(required = true, value_name = "CLUSTER|MEMBER|restart|switchover")]
    pub names: Vec<String>,
    /// Only members in this role.
    #[arg(short, long, value_enum)]
    pub role: Option<RoleFilter>,
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
}

/// One member: by name, or by what it is. Neither means the leader.
#[derive(Debug, Clone, Default, Args)]
pub struct OneMember {
    /// Any member in this role.
    #[arg(short, long, value_enum)]
    pub role: Option<RoleFilter>,
    /// This member.
    #[arg(short, long, conflicts_with = "role")]
    pub member: Option<String>,
}

/// `howdah dsn`
#[derive(Debug, Args)]
pub struct DsnArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Which member.
    #[command(flatten)]
    pub one: OneMember,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// `howdah query`
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// The cluster's name; if given, it must be this one.
    pub cluster: Option<String>,
    /// Which member.
    #[command(flatten)]
    pub one: OneMember,
    /// The SQL; also `-c` behind the verb.
    #[arg(long, value_name = "SQL", required_unless_present = "file")]
    pub command: Option<String>,
    /// A file with the SQL; `-` is standard input.
    #[arg(short, long, conflicts_with = "command")]
    pub file: Option<PathBuf>,
    /// The database user. Default: the superuser of the file of -c, else PGUSER.
    #[arg(short = 'U', long)]
    pub username: Option<String>,
    /// The database. Default: PGDATABASE, else postgres.
    #[arg(short, long)]
    pub dbname: Option<String>,
    /// Ask for the password. Default: that of the file of -c, PGPASSWORD, or the password file.
    #[arg(long)]
    pub password: bool,
    /// How to write it.
    #[arg(long, value_enum, default_value = "tsv")]
    pub format: Format,
    /// Between the values of a line, for tsv.
    #[arg(long, default_value = "\t")]
    pub delimiter: String,
    /// Repeat every so many seconds.
    #[arg(short = 'w', long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub watch: Option<u32>,
    /// Repeat every two seconds.
    #[arg(short = 'W')]
    pub watch_2s: bool,
}

/// `howdah version`
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// The cluster whose members' versions are shown as well.
    pub cluster: Option<String>,
    /// Of these members alone.
    pub members: Vec<String>,
    /// How to write it.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// `howdah member`
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Shows the members of the store.
    List(FormatArgs),
    /// Lets a node join. Start it first with a file that lists all members and itself.
    Add {
        /// Its name.
        name: String,
        /// Its main port, HOST:PORT.
        addr: String,
        /// Do not ask.
        #[arg(long)]
        force: bool,
    },
    /// Takes a node out for good.
    Remove {
        /// Its name.
        name: String,
        /// Do not ask.
        #[arg(long)]
        force: bool,
    },
    /// On the last node that is left, stopped: makes its copy of the store a cluster of its own, when the majority is lost
    /// for good.
    ForceNewCluster {
        /// The node's file.
        file: PathBuf,
        /// Why; kept in the store.
        #[arg(long)]
        reason: String,
        /// Do not ask.
        #[arg(long)]
        force: bool,
    },
}

/// `howdah kv`
#[derive(Debug, Args)]
pub struct KvArgs {
    /// The user of the store, where it asks for one.
    #[arg(long, global = true, value_name = "NAME:PASSWORD")]
    pub user: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: KvCommand,
}

/// What `howdah kv` can do.
#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Shows a key with its value.
    Get {
        /// The key.
        key: String,
        /// All keys that begin with it.
        #[arg(long)]
        prefix: bool,
        /// Without values.
        #[arg(long)]
        keys_only: bool,
        /// As of this revision.
        #[arg(long, default_value_t = 0)]
        rev: i64,
        /// What the node has, perhaps old; works without a quorum.
        #[arg(long)]
        local: bool,
        /// The whole answer as JSON, keys and values in base64.
        #[arg(long)]
        json: bool,
    },
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// The lease to hang it on.
        #[arg(long)]
        lease: Option<String>,
    },
    /// Deletes a key; prints how many were deleted.
    Del {
        /// The key.
        key: String,
        /// All keys that begin with it.
        #[arg(long)]
        prefix: bool,
    },
    /// Compares, then does one thing or another: a transaction in etcdctl's language, from the standard input.
    Txn,
    /// Shows changes as they happen.
    Watch {
        /// The key.
        key: String,
        /// All keys that begin with it.
        #[arg(long)]
        prefix: bool,
        /// From this revision on.
        #[arg(long, default_value_t = 0)]
        rev: i64,
    },
    /// Leases: keys that hang on one go when it ends.
    #[command(subcommand)]
    Lease(LeaseCommand),
}

/// `howdah kv lease`
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Creates one.
    Grant {
        /// Seconds until it ends if nobody keeps it alive.
        ttl: i64,
    },
    /// Ends one, and deletes its keys.
    Revoke {
        /// Its id.
        id: String,
    },
    /// Keeps one alive for once.
    KeepAlive {
        /// Its id.
        id: String,
    },
    /// Shows how long one has left, and its keys.
    Timetolive {
        /// Its id.
        id: String,
    },
    /// Shows all.
    List,
}

/// `howdah config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Checks a node's file and the environment's settings; shows all problems at once.
    Check {
        /// The file, or a directory of *.yml files.
        file: PathBuf,
    },
    /// Explains one key: what it means, its default, the variable that sets it.
    Explain {
        /// The key, dots between the levels, such as restapi.listen or ttl.
        key: String,
    },
    /// Prints a file with every key, its documentation and its default.
    Example {
        /// Only what a node needs.
        #[arg(long)]
        minimal: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_c_behind_query_is_sql() {
        let read = |line: &str| {
            let args = line.split(' ').map(OsString::from).collect();
            let line = CommandLine::try_parse_from(sql_behind_query(args)).expect("valid");
            let sql = match line.command {
                Command::Query(args) => args.command,
                _ => None,
            };
            (line.target.config_file.map(|file| file.display().to_string()), sql)
        };
        assert_eq!(read("howdah -c n1.yml query main -c VACUUM"), (Some("n1.yml".into()), Some("VACUUM".into())));
        assert_eq!(read("howdah query --command VACUUM"), (None, Some("VACUUM".into())));
        assert_eq!(read("howdah list -c n1.yml"), (Some("n1.yml".into()), None));
    }
}
