//! The command line of `howdah dev`, as clap sees it. Parsing only; nothing here acts.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `howdah dev`: a whole cluster on this machine, in one directory.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Directory of the cluster [default: $HOWDAH_DEV_DIR, else ./.howdah-dev]
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Number of nodes of a new cluster: 1, 3 or 5 [default: 3]
    #[arg(long, value_name = "N", value_parser = parse_nodes)]
    pub nodes: Option<usize>,

    /// Start with an empty cluster; an existing directory is moved aside, not deleted
    #[arg(long)]
    pub fresh: bool,

    /// Write all the time, and show what is acknowledged, lost and blocked
    #[arg(long)]
    pub load: bool,

    /// What to do to the cluster from another terminal
    #[command(subcommand)]
    pub command: Option<DevCommand>,
}

/// What a second terminal can do to a running development cluster.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum DevCommand {
    /// Kill every process of a node at once, as a power cut would
    Kill(NodeArg),
    /// Stop a node cleanly; a primary hands over first
    Stop(NodeArg),
    /// Freeze every process of a node, as a hung host would
    Freeze(NodeArg),
    /// Let a frozen node go on
    Thaw(NodeArg),
    /// Start a node again
    Start(NodeArg),
    /// Cut a node off from all others, as a broken network would
    Partition(NodeArg),
    /// End the cut of a node, or all cuts
    Heal(HealArg),
    /// Pass bytes on between the nodes; started by `howdah dev` itself
    #[command(hide = true)]
    Links,
    /// Show what runs and what may fail
    Status(StatusArgs),
}

/// The node that a command is about.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct NodeArg {
    /// Name of the node, for example n1
    #[arg(value_name = "NODE")]
    pub node: String,
}

/// The node whose cut ends.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct HealArg {
    /// Name of the node; all, when there is none
    #[arg(value_name = "NODE")]
    pub node: Option<String>,
}

/// Options of `howdah dev status`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value = "pretty")]
    pub format: Format,
}

/// Output formats of `howdah dev status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table and a sentence
    Pretty,
    /// One JSON object
    Json,
}

fn parse_nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        _ => Err("a cluster has 1, 3 or 5 nodes here, so that more than half of them is a clear majority".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        dev: DevArgs,
    }

    #[test]
    fn a_directory_may_stand_before_or_after_the_verb() {
        for line in [["dev", "--dir", "/d", "kill", "n2"], ["dev", "kill", "n2", "--dir", "/d"]] {
            let parsed = Line::try_parse_from(line).expect("valid line").dev;
            assert_eq!(parsed.dir, Some(PathBuf::from("/d")));
            assert_eq!(parsed.command, Some(DevCommand::Kill(NodeArg { node: "n2".to_owned() })));
        }
    }

    #[test]
    fn an_even_number_of_nodes_is_refused_with_the_reason() {
        let error = Line::try_parse_from(["dev", "--nodes", "4"]).expect_err("4 nodes");
        assert!(error.to_string().contains("1, 3 or 5"), "{error}");
    }
}
