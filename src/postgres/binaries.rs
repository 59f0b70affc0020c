//! Finds PostgreSQL's programs and their version.
//!
//! configured directory only | PATH -> Debian -> RPM -> Homebrew; the newest major wins in each place.
//! The directory that has `postgres` must have all the tools that we need: a mixture of versions is refused.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::Error;
use crate::types::PgVersion;

/// What must be there. `psql` is used only where a TLS connection to another node is demanded.
const REQUIRED: [&str; 5] = ["postgres", "initdb", "pg_controldata", "pg_basebackup", "pg_rewind"];

/// The oldest major version that is supported.
const OLDEST: u32 = 13;

/// The directory of the programs, and their version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    version: PgVersion,
}

impl Binaries {
    /// Finds them.
    ///
    /// # Errors
    /// `FindBinaries` names everything that was searched and what to do; `UnsupportedVersion` for 12 and older.
    pub fn find(configured: Option<&Path>) -> Result<Self, Error> {
        let candidates = match configured {
            Some(dir) => vec![dir.to_owned()],
            None => places(
                std::env::var_os("PATH").as_deref(),
                &[
                    ("/usr/lib/postgresql", "", "bin"),
                    ("/usr", "pgsql-", "bin"),
                    ("/opt/homebrew/opt", "postgresql@", "bin"),
                    ("/usr/local/opt", "postgresql@", "bin"),
                ],
            ),
        };
        let searched = || match configured {
            Some(dir) => format!("postgresql.bin_dir {dir:?}"),
            None => "PATH, /usr/lib/postgresql/*/bin, /usr/pgsql-*/bin, /opt/homebrew/opt/postgresql@*/bin and \
                     /usr/local/opt/postgresql@*/bin"
                .to_owned(),
        };
        let Some(dir) = candidates.into_iter().find(|dir| is_program(&dir.join("postgres"))) else {
            return Err(Error::FindBinaries {
                missing: "postgres".to_owned(),
                searched: searched(),
                remedy: "install the PostgreSQL server package or set postgresql.bin_dir to the directory that \
                         holds its programs"
                    .to_owned(),
            });
        };
        if let Some(missing) = REQUIRED.iter().find(|tool| !is_program(&dir.join(tool))) {
            return Err(Error::FindBinaries {
                missing: (*missing).to_owned(),
                searched: format!("{dir:?}, where postgres is"),
                remedy: "install the complete server package of the same version (client tools included)".to_owned(),
            });
        }
        let version = read_version(&dir.join("postgres"))?;
        if version.major() < OLDEST {
            return Err(Error::UnsupportedVersion { version, program: dir.join("postgres") });
        }
        Ok(Self { dir, version })
    }

    /// Full path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The version of `postgres`.
    pub fn version(&self) -> PgVersion {
        self.version
    }
}

/// PATH entries first, then each `(base, prefix<major>, tail)`, newest major first.
fn places(path: Option<&OsStr>, patterns: &[(&str, &str, &str)]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = path.map(|p| std::env::split_paths(p).collect()).unwrap_or_default();
    // A wrapper (Debian puts some into /usr/bin) is resolved to where the real program lives.
    for dir in &mut found {
        if let Ok(real) = fs::canonicalize(dir.join("postgres"))
            && let Some(parent) = real.parent()
        {
            *dir = parent.to_owned();
        }
    }
    for (base, prefix, tail) in patterns {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(base)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let major = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
                Some((major, entry.path().join(tail)))
            })
            .collect();
        versions.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
        found.extend(versions.into_iter().map(|(_, dir)| dir));
    }
    found
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}

fn read_version(program: &Path) -> Result<PgVersion, Error> {
    // `postgres --version` is the one thing that postgres does as root.
    let output = Command::new(program)
        .arg("--version")
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::StartTool { tool: program.display().to_string(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    parse_version(&text).ok_or_else(|| Error::ReadVersion { program: program.to_owned(), output: text })
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, `17beta1`, `18devel`.
fn parse_version(text: &str) -> Option<PgVersion> {
    let number = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
    let digits_end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    let major: u32 = number.get(..digits_end)?.parse().ok()?;
    let minor = match number.get(digits_end..)?.strip_prefix('.') {
        Some(rest) => rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()?,
        None => 0,
    };
    Some(PgVersion(major.checked_mul(10_000)?.checked_add(minor)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let read = |text| parse_version(text).map(|v| v.0);
        assert_eq!(read("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(150_018));
        assert_eq!(read("postgres (PostgreSQL) 17beta1"), Some(170_000));
        assert_eq!(read("postgres (PostgreSQL) 18devel"), Some(180_000));
        assert_eq!(read("postgres (PostgreSQL) 13.0"), Some(130_000));
        assert_eq!(read("postgres (EnterpriseDB) x"), None);
    }

    #[test]
    fn a_wrong_directory_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let text = Binaries::find(Some(dir.path())).expect_err("nothing there").to_string();
        assert!(text.contains("postgresql.bin_dir") && text.contains("install") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn newest_major_comes_first() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for major in ["9", "13", "17"] {
            fs::create_dir_all(dir.path().join(major).join("bin")).expect("directory");
        }
        let base = dir.path().to_str().expect("text");
        let found = places(None, &[(base, "", "bin")]);
        assert_eq!(found.first(), Some(&dir.path().join("17/bin")));
        assert_eq!(found.len(), 3);
    }
}
