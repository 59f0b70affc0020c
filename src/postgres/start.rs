//! What the guardian needs to start the postmaster: nothing is started here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Instance;
use super::process::base_environment;
use super::settings::split_directories;

/// A command that starts the postmaster in the foreground; the fields are those of the guardian's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSpec {
    /// Full path of `postgres`.
    pub program: PathBuf,
    /// Arguments without the program's name, `-D` among them. Contains no secret.
    pub args: Vec<String>,
    /// The whole environment; nothing else is inherited.
    pub env: BTreeMap<String, String>,
    /// The directories of its unix sockets.
    pub socket_dirs: Vec<PathBuf>,
    /// Working directory: the data directory.
    pub cwd: PathBuf,
    /// The user to become; none when it is the one that we are.
    pub uid: Option<u32>,
    /// The group to become.
    pub gid: Option<u32>,
    /// The supplementary groups; used only when `uid` is given.
    pub groups: Vec<u32>,
    /// Append standard output and error output here; exists after [`Instance::configure`] and belongs to that user.
    pub log_file: PathBuf,
}

impl Instance {
    /// The command for the next start. Complete after [`Instance::configure`].
    pub fn start_spec(&self) -> StartSpec {
        let data_dir = self.config.data_dir.to_string_lossy().into_owned();
        let mut args = vec!["-D".to_owned(), data_dir.clone()];
        // On the command line nothing can override them: neither the base file nor ALTER SYSTEM.
        let controlled = self.controlled();
        let socket_dirs = controlled.get("unix_socket_directories").map(|list| split_directories(list));
        for (name, value) in controlled {
            args.push("-c".to_owned());
            args.push(format!("{name}={value}"));
        }
        let mut env: BTreeMap<String, String> = base_environment(&self.user)
            .into_iter()
            .filter(|(name, _)| *name != "LC_ALL")
            .map(|(name, value)| (name.to_owned(), value.to_string_lossy().into_owned()))
            .collect();
        env.insert("PGDATA".to_owned(), data_dir);
        StartSpec {
            program: self.binaries.program("postgres"),
            args,
            env,
            socket_dirs: socket_dirs.unwrap_or_default().into_iter().map(PathBuf::from).collect(),
            cwd: self.config.data_dir.clone(),
            uid: self.user.switch.then_some(self.user.uid),
            gid: self.user.switch.then_some(self.user.gid),
            groups: self.user.groups.clone(),
            log_file: self.config.log_file.clone(),
        }
    }
}
