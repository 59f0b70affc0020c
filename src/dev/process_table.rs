//! Reads the operating system's table of processes. Zombies are left out: they do nothing any more.
//!
//! Linux: `/proc`. Elsewhere: `ps`, which knows no working directories, so that PostgreSQL's processes
//! are found there by their parents alone. Source: proc(5), proc_pid_stat(5).

use std::path::PathBuf;

use super::processes::ProcessId;

/// One living process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Which process.
    pub id: ProcessId,
    /// Its parent's number.
    pub parent: i32,
    /// The file name of its executable.
    pub program: String,
    /// Its command line.
    pub arguments: Vec<String>,
    /// Its working directory, where we may know it.
    pub cwd: Option<PathBuf>,
    /// Whether it was stopped by a signal.
    pub frozen: bool,
}

/// Every living process that we may look at.
#[cfg(target_os = "linux")]
pub fn read() -> Vec<Row> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(row).collect()
}

/// One process by its number; none when it is gone or a zombie.
#[cfg(target_os = "linux")]
pub fn row(pid: i32) -> Option<Row> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let Stat { state, parent, threads, started } = parse_stat(&stat)?;
    // A killed process looks like this as soon as its first thread has ended; the others may hold its ports for a while.
    if matches!(state, 'Z' | 'X') && threads <= 1 {
        return None;
    }
    let arguments: Vec<String> = std::fs::read(format!("/proc/{pid}/cmdline"))
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty())
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default();
    // A rebuilt binary under a running process shows as "howdah (deleted)".
    let program = program.trim_end_matches(" (deleted)").to_owned();
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
    Some(Row { id: ProcessId { pid, started }, parent, program, arguments, cwd, frozen: matches!(state, 'T' | 't') })
}

/// Some fields of `/proc/PID/stat`.
#[cfg(target_os = "linux")]
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: i32,
    threads: u32,
    started: u64,
}

/// The name in brackets may itself hold brackets and blanks.
#[cfg(target_os = "linux")]
fn parse_stat(stat: &str) -> Option<Stat> {
    let rest = stat.get(stat.rfind(')')? + 1..)?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        threads: fields.get(17)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// Every living process that we may look at.
#[cfg(not(target_os = "linux"))]
pub fn read() -> Vec<Row> {
    ps(&["-A"])
}

/// One process by its number; none when it is gone or a zombie.
#[cfg(not(target_os = "linux"))]
pub fn row(pid: i32) -> Option<Row> {
    ps(&["-p", &pid.to_string()]).into_iter().next()
}

#[cfg(not(target_os = "linux"))]
fn ps(which: &[&str]) -> Vec<Row> {
    let Ok(output) = std::process::Command::new("ps")
        .env("LC_ALL", "C")
        .args(which)
        .args(["-o", "pid=,ppid=,stat=,lstart=,command="])
        .output()
    else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(parse_ps).collect()
}

/// `  812     1 S    Sun Nov 22 20:18:54 2026     postgres -D /d`
#[cfg(any(not(target_os = "linux"), test))]
fn parse_ps(line: &str) -> Option<Row> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [pid, parent, state, _day, month, date, clock, year, command @ ..] = words.as_slice() else { return None };
    if state.starts_with('Z') {
        return None;
    }
    // The start time only has to differ between two processes with one number.
    let started = [month, date, clock, year]
        .iter()
        .flat_map(|word| word.bytes())
        .fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let program = command.first()?.rsplit('/').next()?.trim_end_matches(':').to_owned();
    Some(Row {
        id: ProcessId { pid: pid.parse().ok()?, started },
        parent: parent.parse().ok()?,
        program,
        arguments: command.iter().map(|word| (*word).to_owned()).collect(),
        cwd: None,
        frozen: state.starts_with('T'),
    })
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    use std::time::Duration;

    use super::*;
    #[cfg(target_os = "linux")]
    use crate::telemetry::clock;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "812 (a) b (c) T 7 812 812 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 98765 1000 1";
        assert_eq!(parse_stat(stat), Some(Stat { state: 'T', parent: 7, threads: 3, started: 98765 }));
        assert_eq!(parse_stat("812 (cut"), None);
    }

    /// What a process is killed for is its ports and files: they are free when all threads have ended.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_whose_first_thread_has_ended_is_not_gone() {
        let mut child = std::process::Command::new("python3")
            .args(["-c", FIRST_THREAD_ENDS])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("python3");
        let pid = i32::try_from(child.id()).expect("a pid");
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|text| parse_stat(&text));
        let deadline = clock::now() + Duration::from_secs(30);
        while stat().expect("it is there").state != 'Z' {
            assert!(clock::now() < deadline, "its first thread did not end");
            std::thread::yield_now();
        }
        assert!(row(pid).is_some(), "its other thread reads still");
        drop(child.stdin.take());
        while row(pid).is_some() {
            assert!(clock::now() < deadline, "its other thread did not end");
            std::thread::yield_now();
        }
        child.wait().expect("ends");
    }

    #[cfg(target_os = "linux")]
    const FIRST_THREAD_ENDS: &str = "import ctypes, os, threading
threading.Thread(target=lambda: os.read(0, 1)).start()
ctypes.CDLL(None).pthread_exit(None)";

    #[test]
    fn the_own_process_is_in_the_table() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let own = row(pid).expect("we live");
        assert!(!own.frozen);
        assert!(read().iter().any(|row| row.id == own.id));
        #[cfg(target_os = "linux")]
        assert_eq!(own.cwd, std::env::current_dir().ok());
    }

    #[test]
    fn a_line_of_ps_is_understood() {
        let row = parse_ps("  812     1 T    Sun Nov 22 20:18:54 2026     /opt/pg/bin/postgres -D /d").expect("valid");
        assert_eq!((row.id.pid, row.parent, row.program.as_str(), row.frozen), (812, 1, "postgres", true));
        assert_eq!(row.arguments, ["/opt/pg/bin/postgres", "-D", "/d"]);
        let other = parse_ps("812 1 S Sun Nov 22 20:18:55 2026 postgres").expect("valid");
        assert_ne!(row.id, other.id);
        assert_eq!(parse_ps("812 1 Z Sun Nov 22 20:18:55 2026 postgres"), None);
    }
}
