//! Starts a node's agent as a child process and notes which process it is.
//!
//! configuration + log file -> `howdah run NODE.yml` in a process group of its own (a Ctrl-C in the
//! terminal must reach the launcher alone) -> agent.pid. Nobody restarts an agent that ends.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

use super::layout::NodePaths;
use super::processes::{self, ProcessId};

/// Starts the agent of `node` with the given howdah binary.
///
/// # Errors
/// When an agent of this node runs already, or the program cannot be started.
pub fn spawn(program: &Path, node: &NodePaths) -> anyhow::Result<(Child, ProcessId)> {
    if let Some(id) = running(node) {
        bail!("start {}: its agent runs already (pid {})", node.name, id.pid);
    }
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&node.log)
        .with_context(|| format!("open {}", node.log.display()))?;
    let errors = log.try_clone().with_context(|| format!("open {}", node.log.display()))?;
    let mut child = Command::new(program)
        .arg("run")
        .arg(&node.yaml)
        // For this program's own commands; a node has no such setting.
        .env_remove("HOWDAH_DEV_DIR")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {} run {}", program.display(), node.yaml.display()))?;
    let pid = i32::try_from(child.id()).context("start the agent: its number is not a pid")?;
    let Some(id) = processes::identify(pid) else {
        // It has ended already, and its log says why.
        let status = child.wait().context("wait for the agent")?;
        bail!("start {}: the agent ended at once ({status}); see {}", node.name, node.log.display());
    };
    processes::write_agent_pid(&node.agent_pid, id)?;
    Ok((child, id))
}

/// The agent that runs for this node, whoever started it.
pub fn running(node: &NodePaths) -> Option<ProcessId> {
    processes::read_agent_pid(&node.agent_pid).filter(|id| id.is_alive())
}
