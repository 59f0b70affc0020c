//! Holds a node in the middle of something, so that a kill comes neither before nor after it.
//!
//! ```text
//! NODE/bin/     the real programs as links, and a script in the place of each that can be held   = bin_dir
//! NODE/gates/   GATE: closed while it is there      GATE.held: the number of the process that stands there
//! ```
//! A program is stopped when it has said a certain line, so that it stands half done; a base backup goes on, so slowly that
//! it does not end; a command of the operator waits. Nothing is timed. That a program was through before it could be
//! stopped is written down and said by [`Gates::wait`]: such a round proves nothing and is played again.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use howdah::dev::place;
use howdah::dev::process_table;
use howdah::dev::processes::{self, ProcessId};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT, postgres_program};

/// What can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// initdb, which is filling the new directory.
    Initdb,
    /// The command that runs on a new cluster's first primary, before the cluster counts as created.
    PostBootstrap,
    /// pg_basebackup, which is copying.
    Copy,
    /// pg_rewind, which has found out what it has to change.
    Rewind,
    /// The command that is asked before a promotion.
    PrePromote,
    /// PostgreSQL in its promotion: the new timeline has begun, and nobody may write yet.
    Promotion,
}

/// How the real program behaves at its gate.
#[derive(Debug, Clone, Copy)]
enum At {
    /// Stands still after a line that begins so.
    Line(&'static str),
    /// Goes on with these options.
    Options(&'static str),
}

impl Gate {
    const ALL: [Gate; 6] =
        [Gate::Initdb, Gate::PostBootstrap, Gate::Copy, Gate::Rewind, Gate::PrePromote, Gate::Promotion];

    fn name(self) -> &'static str {
        match self {
            Gate::Initdb => "initdb",
            Gate::PostBootstrap => "post_bootstrap",
            Gate::Copy => "pg_basebackup",
            Gate::Rewind => "pg_rewind",
            Gate::PrePromote => "pre_promote",
            Gate::Promotion => "recovery_end_command",
        }
    }

    /// Commands of the operator are no programs of PostgreSQL.
    fn program(self) -> Option<At> {
        match self {
            Gate::Initdb => Some(At::Line("running bootstrap script")),
            Gate::Copy => Some(At::Options("--max-rate=128k")),
            Gate::Rewind => Some(At::Line("pg_rewind: need to copy")),
            Gate::PostBootstrap | Gate::PrePromote | Gate::Promotion => None,
        }
    }
}

/// What came of waiting at a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// This process stands there.
    Held(ProcessId),
    /// It was through before it could be stopped.
    Missed,
}

/// The gates of a cluster's nodes. Dropped, whatever still stands at one is ended.
pub struct Gates {
    nodes: Vec<(String, PathBuf)>,
}

impl Gates {
    /// Gives every node of a prepared cluster its gates, all of them open.
    pub fn install(cluster: &Cluster) -> Self {
        let programs = postgres_program("postgres").canonicalize().expect("it was found");
        let programs = programs.parent().expect("a file lies in a directory");
        let mut nodes = Vec::new();
        for node in cluster.layout.nodes() {
            let (bin, gates) = (node.dir.join("bin"), node.dir.join("gates"));
            for dir in [&bin, &gates] {
                place::create_node_dir(dir, cluster.user.as_ref()).expect("a directory of the node");
            }
            for entry in fs::read_dir(programs).expect("PostgreSQL's programs").flatten() {
                let name = entry.file_name();
                if Gate::ALL.iter().all(|gate| gate.program().is_none() || name != gate.name()) {
                    symlink(entry.path(), bin.join(&name)).expect("a link");
                }
            }
            let wait = bin.join("wait-at-gate");
            write_script(&wait, WAIT);
            let at = |gate: Gate| format!("{} {}", wait.display(), gates.join(gate.name()).display());
            for gate in Gate::ALL {
                let (real, file) = (programs.join(gate.name()), gates.join(gate.name()));
                match gate.program() {
                    Some(At::Line(line)) => write_script(&bin.join(gate.name()), &stops_after(&real, &file, line)),
                    Some(At::Options(options)) => write_script(&bin.join(gate.name()), &goes_on(&real, &file, options)),
                    None => (),
                }
            }
            let text = fs::read_to_string(&node.yaml).expect("the node's configuration");
            let mut tree: Value = serde_yaml_ng::from_str(&text).expect("valid");
            tree["postgresql"]["bin_dir"] = json!(bin);
            tree["postgresql"]["pre_promote"] = json!(at(Gate::PrePromote));
            tree["postgresql"]["recovery_conf"] = json!({"recovery_end_command": at(Gate::Promotion)});
            tree["bootstrap"]["post_bootstrap"] = json!(at(Gate::PostBootstrap));
            fs::write(&node.yaml, tree.to_string()).expect("writable");
            nodes.push((node.name, gates));
        }
        Self { nodes }
    }

    fn file(&self, node: &str, gate: Gate) -> PathBuf {
        let (_, dir) = self.nodes.iter().find(|(name, _)| name == node).expect("a node of this cluster");
        dir.join(gate.name())
    }

    /// From now on this is held on this node.
    pub fn close(&self, node: &str, gate: Gate) {
        let file = self.file(node, gate);
        for word in ["held", "missed"] {
            let _ = fs::remove_file(file.with_extension(word));
        }
        fs::write(&file, "").expect("close the gate");
    }

    /// Lets whatever stands there go on, and everything that comes. A copy that is slow stays so: it is ended, and the
    /// next attempt is quick.
    pub fn open(&self, node: &str, gate: Gate) {
        let _ = fs::remove_file(self.file(node, gate));
        if let Some(id) = self.held(node, gate) {
            match gate.program() {
                Some(At::Line(_)) => drop(id.signal(Signal::CONT).expect("permitted")),
                Some(At::Options(_)) => drop(id.signal(Signal::KILL).expect("permitted")),
                None => (),
            }
        }
    }

    /// Opens this gate on all nodes.
    pub fn open_all(&self, gate: Gate) {
        self.nodes.iter().for_each(|(node, _)| self.open(node, gate));
    }

    /// Closes this gate on all nodes.
    pub fn close_all(&self, gate: Gate) {
        self.nodes.iter().for_each(|(node, _)| self.close(node, gate));
    }

    /// Who stands at this gate of this node.
    pub fn held(&self, node: &str, gate: Gate) -> Option<ProcessId> {
        let text = fs::read_to_string(self.file(node, gate).with_extension("held")).ok()?;
        let row = process_table::row(text.trim().parse().ok()?)?;
        let stands = match gate.program() {
            Some(At::Line(_)) => row.frozen,
            Some(At::Options(_)) => row.program == gate.name(),
            None => true,
        };
        stands.then_some(row.id)
    }

    /// Waits until somebody else than `before` stands at this gate of one of these nodes, or has slipped through.
    pub fn wait(&self, cluster: &Cluster, nodes: &[String], gate: Gate, before: Option<ProcessId>) -> (String, Found) {
        let look = || {
            nodes.iter().find_map(|node| {
                let held = self.held(node, gate).filter(|id| Some(*id) != before);
                let missed = self.file(node, gate).with_extension("missed").exists();
                let found = held.map(Found::Held).or_else(|| missed.then_some(Found::Missed));
                found.map(|found| (node.clone(), found))
            })
        };
        cluster.until(&format!("one of {nodes:?} is in the middle of {}", gate.name()), LIMIT, |_| look().is_some());
        look().unwrap_or_else(|| panic!("who stood at {} has gone on by itself", gate.name()))
    }

    /// As [`Gates::wait`], for a gate that nothing slips through.
    pub fn stands(
        &self,
        cluster: &Cluster,
        nodes: &[String],
        gate: Gate,
        before: Option<ProcessId>,
    ) -> (String, ProcessId) {
        match self.wait(cluster, nodes, gate, before) {
            (node, Found::Held(id)) => (node, id),
            (node, Found::Missed) => panic!("{} of {node} was through at once", gate.name()),
        }
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        for (node, _) in &self.nodes {
            for gate in Gate::ALL {
                let _ = fs::remove_file(self.file(node, gate));
                if let Some(id) = self.held(node, gate) {
                    let _ = id.signal(Signal::KILL);
                }
            }
        }
    }
}

/// Waits as long as its gate is closed.
const WAIT: &str = "#!/bin/sh
gate=$1
[ -e \"$gate\" ] || exit 0
echo $$ >\"$gate.held\"
while [ -e \"$gate\" ]; do sleep 0.02; done
";

/// Runs the real program, and stops it as soon as it has said the line.
fn stops_after(real: &Path, gate: &Path, line: &str) -> String {
    let (real, gate) = (real.display(), gate.display());
    format!(
        "#!/bin/sh
[ -e '{gate}' ] || exec '{real}' \"$@\"
said='{gate}'.said.$$
mkfifo \"$said\"
'{real}' \"$@\" >\"$said\" 2>&1 &
program=$!
while IFS= read -r line; do
  case \"$line\" in '{line}'*)
    kill -STOP $program
    echo $program >'{gate}.held' ;;
  esac
  echo \"$line\" >&2
done <\"$said\"
rm -f \"$said\"
wait $program
status=$?
[ $status = 0 ] && [ -e '{gate}' ] && echo $program >'{gate}.missed'
exit $status
"
    )
}

/// Runs the real program with more options.
fn goes_on(real: &Path, gate: &Path, options: &str) -> String {
    let (real, gate) = (real.display(), gate.display());
    format!(
        "#!/bin/sh
[ -e '{gate}' ] || exec '{real}' \"$@\"
echo $$ >'{gate}.held'
exec '{real}' \"$@\" {options}
"
    )
}

fn write_script(path: &Path, text: &str) {
    fs::write(path, text).expect("a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
}

/// The programs that work for a node, also those of an agent that was killed: nobody's children, so they are found by what
/// they were told to work on.
pub fn at_work_on(dir: &Path) -> Vec<ProcessId> {
    let data = dir.join("data").display().to_string();
    let names = [Gate::Initdb.name(), Gate::Copy.name(), Gate::Rewind.name(), "sh", "dash"];
    let tools = process_table::read().into_iter().filter(|row| names.contains(&row.program.as_str()));
    tools.filter(|row| row.arguments.iter().any(|argument| argument.contains(&data))).map(|row| row.id).collect()
}

/// Ends exactly this process.
pub fn kill(id: ProcessId) {
    assert!(id.signal(Signal::KILL).expect("permitted"), "process {} was gone", id.pid);
}

/// Whether a process is there no more.
pub fn is_gone(id: ProcessId) -> bool {
    processes::identify(id.pid) != Some(id)
}
