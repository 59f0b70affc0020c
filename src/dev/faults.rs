//! What a second terminal does to a node: kill, stop, freeze, thaw, start, partition, heal.
//!
//! name -> processes of that node -> signals -> one sentence on what was done and what to expect.
//! The cluster is not warned: these are the faults that it is there to survive.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;

use super::layout::{Layout, NodePaths};
use super::screen::print_line;
use super::{agent_process, control, links, processes};

/// How long killed or frozen processes may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills every process of a node.
///
/// # Errors
/// When nothing runs, or something outlives the signal.
pub fn kill(layout: &Layout, name: &str) -> anyhow::Result<ExitCode> {
    let node = layout.node(name)?;
    let killed = processes::kill_node(&node, PATIENCE)?;
    if killed.is_empty() {
        bail!("kill {name}: nothing of it runs (start it with: howdah dev start {name})");
    }
    print_line(&format!("{name}: killed {}.", processes::describe(&killed)));
    print_line(&format!("Watch it: howdah dev status. Bring it back: howdah dev start {name}"));
    Ok(ExitCode::SUCCESS)
}

/// Asks a node's agent to stop cleanly, and returns at once.
///
/// # Errors
/// When its agent does not run.
pub fn stop(layout: &Layout, name: &str) -> anyhow::Result<ExitCode> {
    let node = layout.node(name)?;
    let Some(agent) = agent_process::running(&node) else {
        bail!("stop {name}: its agent does not run (what runs: {})", processes::describe(&processes::of_node(&node)));
    };
    agent.signal(Signal::TERM)?;
    print_line(&format!("{name}: asked its agent (pid {}) to stop; a primary hands over first.", agent.pid));
    print_line(&format!("Watch it: howdah dev status. Bring it back: howdah dev start {name}"));
    Ok(ExitCode::SUCCESS)
}

/// Stops every process of a node in its tracks.
///
/// # Errors
/// When nothing runs.
pub fn freeze(layout: &Layout, name: &str) -> anyhow::Result<ExitCode> {
    let node = layout.node(name)?;
    let frozen = processes::freeze_node(&node, PATIENCE)?;
    if frozen.is_empty() {
        bail!("freeze {name}: nothing of it runs (start it with: howdah dev start {name})");
    }
    print_line(&format!("{name}: froze {}.", processes::describe(&frozen)));
    print_line(&format!("Watch it: howdah dev status. Let it go on: howdah dev thaw {name}"));
    Ok(ExitCode::SUCCESS)
}

/// Lets a frozen node go on.
///
/// # Errors
/// When nothing of it was frozen.
pub fn thaw(layout: &Layout, name: &str) -> anyhow::Result<ExitCode> {
    let node = layout.node(name)?;
    if !processes::of_node(&node).iter().any(|process| process.frozen) {
        bail!("thaw {name}: nothing of it is frozen");
    }
    let thawed = processes::thaw_node(&node)?;
    print_line(&format!("{name}: thawed {}.", processes::describe(&thawed)));
    Ok(ExitCode::SUCCESS)
}

/// Starts a node's agent: as a child of the running `howdah dev`, or on its own when there is none.
///
/// # Errors
/// When it runs already or cannot be started.
pub fn start(layout: &Layout, name: &str) -> anyhow::Result<ExitCode> {
    let node = layout.node(name)?;
    if let Some(answer) = control::ask(&layout.control_socket(), &format!("start {name}"))? {
        print_line(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let program = std::env::current_exe().context("find the own program")?;
    links::ensure(&program, layout)?;
    let pid = start_alone(&program, &node)?;
    print_line(&format!("{name} is starting (pid {pid}). No `howdah dev` runs, so nothing else will stop it:"));
    print_line(&format!("howdah dev stop {name}. Its log: {}", node.log.display()));
    Ok(ExitCode::SUCCESS)
}

/// Cuts a node off from all others; people and clients reach it as before.
///
/// # Errors
/// When there is no such node, or the nodes reach each other directly.
pub fn partition(layout: &Layout, name: &str) -> anyhow::Result<ExitCode> {
    layout.node(name)?;
    let cut = links::order(layout, &format!("cut {name}"))?;
    print_line(&format!("{name}: cut off from the other nodes (cut off now: {cut})."));
    print_line(&format!("Watch it: howdah dev status. Let it back: howdah dev heal {name}"));
    Ok(ExitCode::SUCCESS)
}

/// Ends the cut of a node, or of all.
///
/// # Errors
/// As [`partition`].
pub fn heal(layout: &Layout, name: Option<&str>) -> anyhow::Result<ExitCode> {
    let request = match name {
        Some(name) => {
            layout.node(name)?;
            if !links::cut_off(layout).contains(name) {
                bail!("heal {name}: it is not cut off");
            }
            format!("heal {name}")
        }
        None => "heal".to_owned(),
    };
    let cut = links::order(layout, &request)?;
    print_line(&format!("{}: healed (cut off now: {cut}).", name.unwrap_or("all nodes")));
    Ok(ExitCode::SUCCESS)
}

fn start_alone(program: &Path, node: &NodePaths) -> anyhow::Result<i32> {
    // The child handle is dropped: the agent goes on after us, and init inherits it.
    let (_child, id) = agent_process::spawn(program, node)?;
    Ok(id.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::layout::{ClusterFile, NodePorts};

    #[test]
    fn each_fault_on_a_node_that_is_down_is_refused_and_says_so() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let nodes =
            vec![NodePorts { name: "n1".to_owned(), rest: 1, postgres: 2, router: None, links: None, host: None }];
        let file = ClusterFile { format: 1, scope: "demo".to_owned(), os_user: None, nodes };
        let layout = Layout { dir: dir.path().to_owned(), file };
        type Fault = fn(&Layout, &str) -> anyhow::Result<ExitCode>;
        let faults: [(&str, Fault); 4] = [("kill", kill), ("stop", stop), ("freeze", freeze), ("thaw", thaw)];
        for (verb, fault) in faults {
            let error = fault(&layout, "n1").expect_err(verb).to_string();
            assert!(error.starts_with(&format!("{verb} n1: ")), "{error}");
            let error = fault(&layout, "n9").expect_err(verb).to_string();
            assert!(error.contains("this cluster has n1"), "{error}");
        }
    }
}
