//! Which operating-system user PostgreSQL and its tools run as.
//!
//! Started by root: `postgresql.os_user`, else the owner of the data directory, else "postgres".
//! Started by anyone else: that user, and nobody else. PostgreSQL refuses root, so root is refused here too.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::Error;

/// A resolved user: numbers for the kernel, names for people and for `peer` authentication.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OsUser {
    /// Login name.
    pub name: String,
    /// User number.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups; `ssl-cert` on Debian is how PostgreSQL reads its key.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
    /// True when we are root and must become this user to run its tools.
    pub switch: bool,
}

impl OsUser {
    /// Chooses the user for a data directory.
    ///
    /// # Errors
    /// `ResolveUser` when the user does not exist, is root, or is not us while we are not root.
    pub fn resolve(configured: Option<&str>, data_dir: &Path) -> Result<Self, Error> {
        let current = Self::current()?;
        if current.uid != 0 {
            return match configured {
                Some(name) if name != current.name => Err(Error::ResolveUser {
                    user: name.to_owned(),
                    why: format!(
                        "howdah runs as {:?}, only root can run PostgreSQL as another user; start howdah as {name:?} or \
                         remove postgresql.os_user",
                        current.name
                    ),
                }),
                _ => Ok(current),
            };
        }
        let mut user = match configured {
            Some(name) => lookup(name)?,
            None => match owner_of(data_dir) {
                Some(uid) if uid != 0 => lookup(&uid.to_string())?,
                _ => lookup("postgres").map_err(|_| Error::ResolveUser {
                    user: "postgres".to_owned(),
                    why: "PostgreSQL refuses to run as root and there is no user \"postgres\"; create it or set \
                          postgresql.os_user"
                        .to_owned(),
                })?,
            },
        };
        if user.uid == 0 {
            return Err(Error::ResolveUser {
                user: user.name,
                why: "PostgreSQL refuses to run as root; set postgresql.os_user to an unprivileged user".to_owned(),
            });
        }
        user.switch = true;
        Ok(user)
    }

    /// The user that this process runs as.
    ///
    /// # Errors
    /// None in practice: a user without a name is shown by its number.
    pub fn current() -> Result<Self, Error> {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let found = lookup(&uid.to_string()).ok();
        let name = found.as_ref().map_or_else(|| uid.to_string(), |u| u.name.clone());
        let home =
            std::env::var_os("HOME").map(PathBuf::from).or(found.map(|u| u.home)).unwrap_or_else(|| PathBuf::from("/"));
        Ok(Self { name, uid, gid, groups: Vec::new(), home, switch: false })
    }

    /// Gives an open file to this user, when we are root.
    pub(super) fn own_file(&self, file: &File) -> io::Result<()> {
        if self.switch { std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }

    /// Gives a path to this user, when we are root. Never follows a symbolic link.
    pub(super) fn own_path(&self, path: &Path) -> io::Result<()> {
        if self.switch { std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid)) } else { Ok(()) }
    }
}

fn owner_of(data_dir: &Path) -> Option<u32> {
    fs::metadata(data_dir).ok().map(|m| m.uid())
}

/// Finds a user by name or number: `/etc/passwd` first, then whatever the name service knows.
fn lookup(who: &str) -> Result<OsUser, Error> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| is_entry_of(line, who)).map(str::to_owned);
    let line = line.or_else(|| command_output("getent", &["passwd", who]));
    let entry = line.as_deref().and_then(parse_entry).ok_or_else(|| Error::ResolveUser {
        user: who.to_owned(),
        why: "there is no such user on this machine; create it or change postgresql.os_user".to_owned(),
    })?;
    let groups = command_output("id", &["-G", &entry.name])
        .map(|text| text.split_whitespace().filter_map(|g| g.parse().ok()).collect())
        .unwrap_or_else(|| vec![entry.gid]);
    Ok(OsUser { groups, ..entry })
}

fn is_entry_of(line: &str, who: &str) -> bool {
    let mut fields = line.split(':');
    fields.next() == Some(who) || fields.nth(1) == Some(who)
}

fn parse_entry(line: &str) -> Option<OsUser> {
    let fields: Vec<&str> = line.trim_end().split(':').collect();
    Some(OsUser {
        name: (*fields.first()?).to_owned(),
        uid: fields.get(2)?.parse().ok()?,
        gid: fields.get(3)?.parse().ok()?,
        groups: Vec::new(),
        home: PathBuf::from(fields.get(5)?),
        switch: false,
    })
}

fn command_output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_by_name_and_number() {
        let line = "postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash";
        assert!(is_entry_of(line, "postgres") && is_entry_of(line, "101") && !is_entry_of(line, "104"));
        let user = parse_entry(line).expect("entry");
        assert_eq!((user.uid, user.gid, user.home), (101, 104, PathBuf::from("/var/lib/postgresql")));
        assert!(parse_entry("broken").is_none());
    }

    #[test]
    fn an_unknown_user_is_named() {
        let error = OsUser::resolve(Some("no-such-user-here"), Path::new("/nowhere")).expect_err("unknown");
        assert!(error.to_string().contains("no-such-user-here"), "{error}");
    }
}
