//! `run`, `config check`, `config example` and `version`: commands that need no cluster.

use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::args::{Format, RunArgs};
use super::output::{note, print};
use super::{Failure, Outcome, exit};
use crate::api::wire::PATRONI_VERSION;
use crate::config::{self, Config, example};
use crate::telemetry::log::{self, LogSetup};

/// `howdah run`
pub(super) fn run(args: &RunArgs, run_node: impl FnOnce(Config) -> anyhow::Result<()>) -> Outcome {
    if args.check {
        return check(&args.file);
    }
    let config = load(&args.file)?;
    log::init(LogSetup {
        node: config.name.to_string(),
        level: config.log.level,
        json: config.log.json,
        static_fields: config.log.static_fields.clone(),
    })
    .context("start the node")?;
    for warning in &config.warnings {
        tracing::warn!("configuration: {warning}");
    }
    Ok(run_node(config)?)
}

/// `howdah config check`
pub(super) fn check(file: &Path) -> Outcome {
    let config = load(file)?;
    for warning in &config.warnings {
        note(&format!("warning: {warning}"));
    }
    let members = match config.raft.members.len() {
        1 => "1 member".to_owned(),
        many => format!("{many} members"),
    };
    let kind = if config.is_witness() { "witness" } else { "node" };
    print(&format!("{}: valid: {kind} {} of cluster {}, {members}", file.display(), config.name, config.scope))
}

fn load(file: &Path) -> Outcome<Config> {
    config::load(file).map_err(|error| Failure { exit: exit::FAILED, error: anyhow::Error::new(error) })
}

/// `howdah config explain`
pub(super) fn explain(key: &str) -> Outcome {
    match config::explain::explain(key) {
        Ok(text) => print(&text),
        Err(why) => Err(Failure::new(exit::USAGE, why)),
    }
}

/// `howdah config example`
pub(super) fn example(minimal: bool) -> Outcome {
    match minimal {
        true => print(include_str!("../../config/minimal.yml")),
        false => print(&example::full()),
    }
}

/// `howdah version`
pub(super) fn version(format: Format) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let record = json!({"howdah": own, "patroni_interface": PATRONI_VERSION});
    print(&match format {
        Format::Pretty => format!("howdah {own} (REST interface of Patroni {PATRONI_VERSION})"),
        Format::Json => record.to_string(),
        Format::Yaml => format!("howdah: {own}\npatroni_interface: {PATRONI_VERSION}"),
        Format::Tsv => format!("howdah\t{own}\npatroni_interface\t{PATRONI_VERSION}"),
    })
}
