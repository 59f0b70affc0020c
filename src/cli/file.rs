//! `run`, `config check`, `config example`, `version` and the forcing of a new cluster: commands that need none.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::json;

use super::args::{Format, RunArgs};
use super::output::{confirm, note, print};
use super::{Failure, Outcome, exit};
use crate::api::wire::PATRONI_VERSION;
use crate::config::{self, Config, example};
use crate::raft;
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
    for warning in config.warnings.iter().chain(&not_here(&config)) {
        note(&format!("warning: {warning}"));
    }
    let members = match config.raft.members.len() {
        1 => "1 member".to_owned(),
        many => format!("{many} members"),
    };
    let kind = if config.is_witness() { "witness" } else { "node" };
    print(&format!("{}: valid: {kind} {} of cluster {}, {members}", file.display(), config.name, config.scope))
}

/// What the file names and this machine does not have. The file may be meant for another one, so it stays valid.
fn not_here(config: &Config) -> Vec<String> {
    let mut missing = Vec::new();
    let ctl = &config.ctl_tls;
    let main = config.restapi.tls.as_ref();
    let etcd = config.etcd_tls.as_ref();
    let files = [
        ("restapi.certfile", main.map(|tls| &tls.pair.certfile)),
        ("restapi.keyfile", main.and_then(|tls| tls.pair.keyfile.as_ref())),
        ("restapi.cafile", ctl.cafile.as_ref()),
        ("ctl.cacert", ctl.cacert.as_ref()),
        ("ctl.certfile", ctl.pair.as_ref().map(|pair| &pair.certfile)),
        ("ctl.keyfile", ctl.pair.as_ref().and_then(|pair| pair.keyfile.as_ref())),
        ("etcd.cert_file", etcd.map(|tls| &tls.pair.certfile)),
        ("etcd.key_file", etcd.and_then(|tls| tls.pair.keyfile.as_ref())),
        ("etcd.trusted_ca_file", etcd.and_then(|tls| tls.cafile.as_ref())),
    ];
    for (key, file) in files {
        if let Some(file) = file.filter(|file| !file.exists()) {
            missing.push(format!("{key}: {} does not exist on this machine", file.display()));
        }
    }
    let Some(pg) = &config.postgresql else { return missing };
    if let Some(dir) = pg.bin_dir.as_ref().filter(|dir| !dir.join("postgres").is_file()) {
        missing.push(format!("postgresql.bin_dir: there is no {}/postgres on this machine", dir.display()));
    }
    if let Some(user) = pg.os_user.as_ref().filter(|user| !is_user(user)) {
        missing.push(format!("postgresql.os_user: there is no user {user} on this machine"));
    }
    missing
}

/// Whether the system's name service knows a user. Where it cannot be asked, all are known.
fn is_user(name: &str) -> bool {
    let asked = Command::new("getent").args(["passwd", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.map_or(true, |status| status.success())
}

/// `howdah member force-new-cluster`
///
/// Offline: without a majority nobody can agree to anything, so a person decides on what one node has.
pub(super) fn force_new_cluster(file: &Path, reason: &str, force: bool) -> Outcome {
    let config = load(file)?;
    let (name, dir) = (&config.name, &config.raft.data_dir);
    let plan = format!(
        "Makes the store in {} a new cluster with {name} as its only member. Only for a majority that is lost for good: what \
         this copy never received is lost, and the other members are shut out until their raft.data_dir has been moved away. \
         PostgreSQL's data is not touched.",
        dir.display()
    );
    confirm(&plan, force)?;
    let report = raft::force_new_cluster(dir, reason).map_err(|error| Failure {
        exit: if matches!(error, raft::Error::Locked { .. }) { exit::REFUSED } else { exit::FAILED },
        error: anyhow::Error::new(error),
    })?;
    let others = match report.left_behind.as_slice() {
        [] => "nobody".to_owned(),
        names => names.join(", "),
    };
    print(&format!(
        "{name} is the only member now; left behind: {others}. Its copy ends with entry {}, of which it knew {} to be agreed \
         upon.\n\
         Next: howdah run {} (or start its service). If it does not lead by itself, `howdah why not {name}` says why, and \
         `howdah failover --candidate {name} --force` accepts what may be lost.\n\
         The others join again, and are copied or rewound, when their raft.data_dir has been moved away.",
        report.last_entry,
        report.last_committed,
        file.display()
    ))
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
