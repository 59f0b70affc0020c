//! Runs PostgreSQL's tools: as the right user, with a clean environment, in their own process group.
//!
//! spawn -> lines of error output to the caller -> exit | cancel (SIGTERM, then SIGKILL to the whole group).
//! A tool never outlives its future: dropping it kills the group. The postmaster is not run from here.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::user::OsUser;

/// Limit for tools that only look (`pg_controldata`, `postgres -C`).
pub(super) const QUICK: Duration = Duration::from_secs(15);
/// How long a tool may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);
/// How much of the output is kept, per stream.
const KEEP_OUTPUT: usize = 1 << 20;
/// Bytes that a tool's last line may have.
const KEEP_TAIL: usize = 16 << 10;
/// How many lines of error output are kept for a message.
const KEEP_LINES: usize = 12;

/// One call of a tool, not yet running.
pub(super) struct Tool<'a> {
    /// Full path.
    pub program: &'a Path,
    /// As whom.
    pub user: &'a OsUser,
    /// Never contains a secret.
    pub arguments: Vec<OsString>,
    /// Working directory.
    pub directory: Option<&'a Path>,
    /// Beside the usual environment.
    pub environment: Vec<(&'static str, OsString)>,
}

impl<'a> Tool<'a> {
    pub(super) fn new(program: &'a Path, user: &'a OsUser) -> Self {
        Self { program, user, arguments: Vec::new(), directory: None, environment: Vec::new() }
    }

    pub(super) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(super) fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub(super) fn directory(mut self, directory: &'a Path) -> Self {
        self.directory = Some(directory);
        self
    }

    pub(super) fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name, value.as_ref().to_owned()));
        self
    }

    fn name(&self) -> String {
        self.program.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
    }

    fn spawn(&self) -> Result<Running, Error> {
        let mut command = Command::new(self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(base_environment(self.user))
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .current_dir(self.directory.unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        become_user(&mut command, self.user);
        let tool = self.name();
        let child = command.spawn().map_err(|source| Error::StartTool { tool: tool.clone(), source })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Running { child, group, tool })
    }

    /// Runs to the end within `limit`; success returns the standard output.
    pub(super) async fn output(self, limit: Duration) -> Result<String, Error> {
        let tool = self.name();
        let finished = self.finish(limit).await?;
        if finished.status.success() {
            return Ok(finished.stdout);
        }
        Err(Error::RunTool { tool, status: describe(finished.status), detail: last_lines(&finished.stderr) })
    }

    /// Runs to the end within `limit`, whatever the exit code.
    pub(super) async fn finish(self, limit: Duration) -> Result<Finished, Error> {
        let mut running = self.spawn()?;
        let stdout = running.child.stdout.take();
        let stderr = running.child.stderr.take();
        let work = async {
            let (out, err, status) = tokio::join!(read_ends(stdout), read_some(stderr), running.child.wait());
            let (stdout, last_line) = out;
            status.map(|status| Finished { status, stdout, stderr: err, last_line })
        };
        let result = tokio::time::timeout(limit, work).await;
        match result {
            Ok(Ok(finished)) => {
                running.group = None;
                Ok(finished)
            }
            Ok(Err(source)) => Err(Error::StartTool { tool: running.tool.clone(), source }),
            Err(_) => {
                let tool = running.tool.clone();
                running.stop().await;
                Err(Error::ToolTimeout { tool, after: limit })
            }
        }
    }

    /// Runs a long tool: `started` gets its pid, `line` each line of error output. No time limit: progress
    /// is what the caller watches, and `cancel` ends it.
    pub(super) async fn follow(
        self,
        cancel: &CancellationToken,
        operation: &'static str,
        started: impl FnOnce(u32) -> Result<(), Error>,
        mut line: impl FnMut(&str),
    ) -> Result<(), Error> {
        let mut running = self.spawn()?;
        if let Some(pid) = running.child.id() {
            started(pid)?;
        }
        let stdout = running.child.stdout.take();
        let stderr = running.child.stderr.take();
        let mut tail = Tail::default();
        let group = running.group;
        let work = async {
            let lines = async {
                let Some(stderr) = stderr else { return };
                let mut reader = BufReader::new(stderr.take(u64::MAX));
                let mut buffer = Vec::new();
                while let Ok(read) = reader.read_until(b'\n', &mut buffer).await {
                    if read == 0 {
                        break;
                    }
                    for part in String::from_utf8_lossy(&buffer).split(['\r', '\n']).filter(|p| !p.trim().is_empty()) {
                        line(part);
                        tail.push(part);
                    }
                    buffer.clear();
                }
            };
            let ended = async {
                let status = running.child.wait().await;
                // Its helper (the WAL streamer of pg_basebackup) does not notice that it was killed: it would go on for
                // ever, and hold the pipes open.
                if status.as_ref().is_ok_and(|status| !status.success()) {
                    signal_group(group, Signal::KILL);
                }
                status
            };
            let ((), _, status) = tokio::join!(lines, read_some(stdout), ended);
            status
        };
        let status = tokio::select! {
            status = work => status,
            () = cancel.cancelled() => {
                running.stop().await;
                return Err(Error::Cancelled { operation });
            }
        };
        let tool = running.tool.clone();
        let status = status.map_err(|source| Error::StartTool { tool: tool.clone(), source })?;
        running.group = None;
        if status.success() {
            return Ok(());
        }
        Err(Error::RunTool { tool, status: describe(status), detail: tail.text() })
    }
}

/// A tool that has ended.
pub(super) struct Finished {
    pub status: ExitStatus,
    /// Its beginning.
    pub stdout: String,
    /// Its last line, however long it was.
    pub last_line: Option<String>,
    pub stderr: String,
}

/// A running tool; its process group dies with this value.
struct Running {
    child: Child,
    group: Option<Pid>,
    tool: String,
}

impl Running {
    async fn stop(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            // SIGKILL cannot be refused; a process in uninterruptible sleep is left to the kernel.
            let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
        } else {
            // The main process is gone; a helper that it forked (WAL streamer) must not stay.
            self.signal(Signal::KILL);
        }
        self.group = None;
    }

    fn signal(&self, signal: Signal) {
        signal_group(self.group, signal);
    }
}

fn signal_group(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // An error means that the group is gone already.
        let _ = kill_process_group(group, signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The last lines of a tool's error output, without progress lines.
#[derive(Default)]
struct Tail(std::collections::VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if line.contains(" kB (") {
            return;
        }
        if self.0.len() == KEEP_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.trim().to_owned());
    }

    fn text(self) -> String {
        self.0.into_iter().collect::<Vec<_>>().join("; ")
    }
}

/// The whole environment of a tool: nothing of ours (`NOTIFY_SOCKET`, `HOWDAH_*`, `PG*`) leaks.
pub(super) fn base_environment(user: &OsUser) -> Vec<(&'static str, OsString)> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let mut environment = vec![
        ("PATH", path),
        ("HOME", user.home.clone().into_os_string()),
        ("USER", OsString::from(&user.name)),
        ("LOGNAME", OsString::from(&user.name)),
        ("LC_ALL", OsString::from("C")),
    ];
    for name in ["TZ", "TMPDIR", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            environment.push((name, value));
        }
    }
    environment
}

/// Makes the child become `user` before it executes the program.
#[allow(unsafe_code)]
fn become_user(command: &mut Command, user: &OsUser) {
    if !user.switch {
        return;
    }
    let (uid, gid) = (user.uid, user.gid);
    let groups: Vec<libc::gid_t> = user.groups.clone();
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls on values
    // that were copied before the fork; it neither allocates nor takes a lock. `groups` outlives the call.
    unsafe {
        command.pre_exec(move || {
            // The type of setgroups' length differs between platforms; the list is far below any limit.
            if libc::setgroups(groups.len() as _, groups.as_ptr()) != 0
                || libc::setgid(gid) != 0
                || libc::setuid(uid) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

async fn read_some(stream: Option<impl AsyncRead + Unpin>) -> String {
    read_ends(stream).await.0
}

/// The beginning, and the last whole line.
async fn read_ends(stream: Option<impl AsyncRead + Unpin>) -> (String, Option<String>) {
    let Some(mut stream) = stream else { return (String::new(), None) };
    let mut kept = Vec::new();
    let mut tail = Vec::new();
    let mut chunk = [0_u8; 8192];
    // Reads to the end so that the tool never blocks, keeps the beginning.
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        let room = KEEP_OUTPUT.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(&chunk[..room]);
        tail.extend_from_slice(&chunk[..read]);
        tail.drain(..tail.len().saturating_sub(KEEP_TAIL));
    }
    let last = String::from_utf8_lossy(&tail).lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned);
    (String::from_utf8_lossy(&kept).into_owned(), last)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn last_lines(text: &str) -> String {
    let mut tail = Tail::default();
    text.lines().filter(|l| !l.trim().is_empty()).for_each(|l| tail.push(l));
    tail.text()
}

/// When a process started, in the kernel's own unit: with the pid it identifies a process for good.
#[cfg(target_os = "linux")]
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may contain anything, so count from the last ')': field 22 is the 20th after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// When a process started; not known on this platform.
#[cfg(not(target_os = "linux"))]
pub(super) fn start_time(_pid: u32) -> Option<u64> {
    None
}

/// Kills the process group of a tool that an earlier run of ours left behind, and waits for its end.
///
/// Only when `started` proves that the pid still is that process.
pub(super) async fn kill_orphan(pid: u32, started: Option<u64>) {
    let Some(started) = started else { return };
    if start_time(pid) != Some(started) {
        return;
    }
    let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    tracing::warn!(pid, "killing a tool that an earlier run left behind");
    let _ = kill_process_group(group, Signal::KILL);
    for _ in 0..100 {
        if start_time(pid) != Some(started) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell<'a>(user: &'a OsUser, script: &str) -> Tool<'a> {
        Tool::new(Path::new("/bin/sh"), user).arg("-c").arg(script)
    }

    #[tokio::test]
    async fn output_failure_and_timeout_are_told_apart() {
        let user = OsUser::current().expect("user");
        let out = shell(&user, "echo hello; echo noise >&2").output(QUICK).await.expect("ok");
        assert_eq!(out.trim(), "hello");
        let error = shell(&user, "echo broken >&2; exit 3").output(QUICK).await.expect_err("fails");
        assert_eq!(error.to_string(), "run sh: exit code 3: broken");
        let error = shell(&user, "sleep 60").output(Duration::from_millis(50)).await.expect_err("slow");
        assert!(matches!(error, Error::ToolTimeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn nothing_of_ours_leaks_into_the_environment() {
        let user = OsUser::current().expect("user");
        let out = shell(&user, "env").output(QUICK).await.expect("ok");
        assert!(out.lines().any(|l| l == "LC_ALL=C"));
        assert!(
            !out.lines().any(|l| l.starts_with("CARGO") || l.starts_with("PG") || l.starts_with("NOTIFY")),
            "{out}"
        );
    }

    #[tokio::test]
    async fn a_tool_that_is_killed_is_not_waited_for_until_its_helper_ends() {
        let user = OsUser::current().expect("user");
        let script = "sleep 300 & kill -9 $$";
        let followed =
            async { shell(&user, script).follow(&CancellationToken::new(), "test", |_| Ok(()), |_| ()).await };
        let ended = tokio::time::timeout(Duration::from_secs(30), followed).await;
        let error = ended.expect("the helper holds the pipes, and is ended").expect_err("killed");
        assert_eq!(error.to_string(), "run sh: killed by signal 9: ");
    }

    #[tokio::test]
    async fn cancel_kills_the_whole_group() {
        let user = OsUser::current().expect("user");
        let cancel = CancellationToken::new();
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("pid");
        let script = format!("sleep 300 & echo $! > {}; echo ready >&2; wait", file.display());
        let trigger = cancel.clone();
        let tool = shell(&user, &script);
        let result = tool.follow(&cancel, "test", |_| Ok(()), |_| trigger.cancel()).await;
        assert!(matches!(result, Err(Error::Cancelled { operation: "test" })));
        let pid: u32 = std::fs::read_to_string(&file).expect("pid").trim().parse().expect("number");
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        for _ in 0..200 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the child of the tool is still there");
    }
}
