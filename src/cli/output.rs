//! Writing to the terminal, and asking.

use std::io::{self, BufRead, Write};

use anyhow::{Context, anyhow};

use super::{Failure, Outcome, exit};
use crate::telemetry::log::say;

/// Writes `text` and a line end to standard output. A reader that went away (`| head`) is no failure.
pub(super) fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("write to standard output").into())
        }
        _ => Ok(()),
    }
}

/// A remark beside the output proper.
pub(super) fn note(text: &str) {
    say(text);
}

/// Asks before a change. `plan` says what will happen.
pub(super) fn confirm(plan: &str, force: bool) -> Outcome {
    note(plan);
    if force {
        return Ok(());
    }
    {
        let mut err = io::stderr().lock();
        let _ = write!(err, "Go on? [y/N]: ").and_then(|()| err.flush());
    }
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer).context("read the answer")?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ if read == 0 => Err(Failure {
            exit: exit::FAILED,
            error: anyhow!("aborted: there was no answer; add --force to go on without one"),
        }),
        _ => Err(Failure { exit: exit::FAILED, error: anyhow!("aborted") }),
    }
}
