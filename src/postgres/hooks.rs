//! Commands of the operator that are told of what has happened to the server, and what they were told last.
//!
//! Run as the server's user, with a clean environment, in a process group that does not outlive its time.

use std::path::Path;
use std::time::Duration;

use super::Instance;
use super::error::Error;
use super::files::{read_text_optional, write_if_different};
use super::process::Tool;

/// In the run directory.
const TOLD: &str = "callbacks.json";

impl Instance {
    /// Runs a command to its end, within `limit`.
    ///
    /// # Errors
    /// `StartTool`, `RunTool` with what it wrote, `ToolTimeout`.
    pub async fn run_hook(&self, words: &[String], arguments: &[&str], limit: Duration) -> Result<(), Error> {
        let Some((program, rest)) = words.split_first() else { return Ok(()) };
        Tool::new(Path::new(program), &self.user).args(rest).args(arguments).output(limit).await.map(|_| ())
    }

    /// What the commands were told last, as it was written; none if nothing, or if it cannot be read.
    pub fn told(&self) -> Option<String> {
        read_text_optional(&self.config.run_dir.join(TOLD)).ok().flatten()
    }

    /// Writes down what they have been told.
    ///
    /// # Errors
    /// `WriteFile`.
    pub fn set_told(&self, text: &str) -> Result<(), Error> {
        write_if_different(&self.config.run_dir.join(TOLD), text.as_bytes(), 0o600, &self.user).map(|_| ())
    }
}
