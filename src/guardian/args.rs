//! `howdah guardian`: the command line of the guardian process, and its coming up.
//!
//! ```text
//! arguments -> locks -> socket -> (detach) -> protections -> run
//! ```
//!
//! Everything that can be refused is refused before the process detaches, so that whoever starts it reads the sentence
//! on standard error. SIGHUP and SIGINT are ignored. SIGTERM stops PostgreSQL fast (60 s, then by force) if it is a
//! standby or its permit holds, kills it otherwise or on a second SIGTERM, and then ends the guardian; a service
//! manager that is to restart the agent alone must not send it (systemd: `KillMode=process`). Deliberately absent: configuration files; the agent tells everything.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use super::home::Home;
use super::journal::{self, Journal};
use super::lock::{DataDirLock, SocketLock};
use super::run::run;
use super::server::Server;
use super::spawn::{close_inherited, detach, hear_signals};
use super::supervise::Core;

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// Where to listen.
    pub socket: PathBuf,
    /// PostgreSQL's data directory.
    pub data_dir: PathBuf,
    /// The node's name, for the log and for people who list processes.
    pub name: String,
    /// The log.
    pub log: Option<PathBuf>,
    /// Leave the caller; otherwise stay in the foreground, as a service of its own.
    pub detach: bool,
}

const USAGE: &str = "usage: howdah guardian --socket PATH --data-dir DIR --name NODE [--log FILE] [--detach]";

/// Runs the guardian until it is told to end. Call it before any thread is started.
///
/// Exit code 2: wrong arguments; 1: it could not come up, with a sentence on standard error.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = match parse(args) {
        Ok(args) => args,
        Err(what) => return say_and_fail(&format!("{what}\n{USAGE}"), 2),
    };
    match come_up(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => say_and_fail(&format!("howdah guardian: {error:#}"), 1),
    }
}

#[allow(clippy::print_stderr, reason = "the sentence for whoever starts the process")]
fn say_and_fail(what: &str, code: u8) -> ExitCode {
    eprintln!("{what}");
    ExitCode::from(code)
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Args, String> {
    let (mut socket, mut data_dir, mut name, mut log, mut detach) = (None, None, None, None, false);
    while let Some(flag) = args.next() {
        let flag = flag.to_string_lossy().into_owned();
        if flag == "--detach" {
            detach = true;
            continue;
        }
        let target = match flag.as_str() {
            "--socket" => &mut socket,
            "--data-dir" => &mut data_dir,
            "--name" => &mut name,
            "--log" => &mut log,
            _ => return Err(format!("unknown argument {flag:?}")),
        };
        *target = Some(args.next().ok_or_else(|| format!("{flag} needs a value"))?);
    }
    let absolute = |flag: &str, path: OsString| {
        // The working directory is not kept.
        std::path::absolute(&path).map_err(|error| format!("{flag} {}: {error}", path.display()))
    };
    Ok(Args {
        socket: absolute("--socket", socket.ok_or("--socket is missing")?)?,
        data_dir: absolute("--data-dir", data_dir.ok_or("--data-dir is missing")?)?,
        name: name.ok_or("--name is missing")?.to_string_lossy().into_owned(),
        log: log.map(|path| absolute("--log", path)).transpose()?,
        detach,
    })
}

fn come_up(args: Args) -> anyhow::Result<()> {
    use anyhow::Context;
    let Args { socket, data_dir, name, log, detach: leave } = args;
    if leave {
        close_inherited();
    }
    let lock = SocketLock::take(&socket)?;
    let data_lock = DataDirLock::take(&data_dir)?;
    let server = Server::listen(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    if let Some(path) = &log {
        journal::open(path).with_context(|| format!("open log {}", path.display()))?;
    }
    if leave {
        detach(log.as_deref()).context("detach")?;
    }
    let signals = hear_signals().context("install signal handlers")?;
    let journal = Journal::new(name, log);
    let core = Core::new(Home::new(data_dir), lock, data_lock, journal).context("open /proc")?;
    run(core, server, &signals);
    // Still under the lock, so that it is this guardian's own.
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Args, String> {
        parse(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        assert_eq!(read("--socket /s --name n").unwrap_err(), "--data-dir is missing");
        assert_eq!(read("--socket").unwrap_err(), "--socket needs a value");
        assert!(read("--sokcet /s").unwrap_err().contains("--sokcet"));
    }

    #[test]
    fn relative_paths_become_absolute() {
        let args = read("--socket s --data-dir /d --name n1 --detach").unwrap();
        assert!(args.socket.is_absolute());
        assert_eq!((args.name.as_str(), args.detach, args.log), ("n1", true, None));
    }
}
