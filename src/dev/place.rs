//! Finds the directory of a development cluster, and who runs PostgreSQL in it.
//!
//! --dir | $HOWDAH_DEV_DIR | ./.howdah-dev -> may PostgreSQL's user walk there? -> yes: take it
//! | no, and nobody asked for it by name: /var/tmp/howdah-dev-UID, and say so | no: refuse, with the remedy.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::layout::Layout;
use crate::telemetry::clock;

/// The user who runs PostgreSQL when howdah is run by root; PostgreSQL refuses root itself.
const POSTGRES_USER: &str = "postgres";

/// An operating system user with the groups that count for permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsUser {
    /// The name.
    pub name: String,
    /// The numeric id.
    pub uid: u32,
    /// The primary group first.
    pub groups: Vec<u32>,
}

/// A directory for the cluster, and what has to be said about the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Absolute path; it may not exist yet.
    pub dir: PathBuf,
    /// Why it is not the usual one.
    pub note: Option<String>,
}

/// The user who has to run PostgreSQL: none when we are not root, because then it is ourselves.
///
/// # Errors
/// When we are root and there is no user `postgres`.
pub fn postgres_user() -> anyhow::Result<Option<OsUser>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let numbers = |flag: &str| -> anyhow::Result<Vec<u32>> {
        let output = Command::new("id").args([flag, POSTGRES_USER]).output().context("run id")?;
        if !output.status.success() {
            bail!(
                "find user {POSTGRES_USER}: there is none, and PostgreSQL refuses to run as root; \
                 install PostgreSQL (which creates it), or run howdah dev as an ordinary user"
            );
        }
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace().map(|word| word.parse().context("read the answer of id")).collect()
    };
    let uid = numbers("-u")?.first().copied().context("read the answer of id: it is empty")?;
    Ok(Some(OsUser { name: POSTGRES_USER.to_owned(), uid, groups: numbers("-G")? }))
}

/// Where to create or resume the cluster.
///
/// # Errors
/// When the directory that was asked for by name cannot be used by PostgreSQL's user.
pub fn for_start(requested: Option<&Path>, user: Option<&OsUser>) -> anyhow::Result<Place> {
    let by_name = requested.map(Path::to_owned).or_else(|| std::env::var_os("HOWDAH_DEV_DIR").map(PathBuf::from));
    let usual =
        std::path::absolute(by_name.as_deref().unwrap_or(Path::new(".howdah-dev"))).context("find the directory")?;
    let Some(user) = user else { return Ok(Place { dir: usual, note: None }) };
    let Some(barrier) = barrier(&usual, user) else { return Ok(Place { dir: usual, note: None }) };
    if by_name.is_some() {
        bail!(
            "use {}: user {} (who runs PostgreSQL) may not enter {}; choose another --dir, for example {}, \
             or allow it with: chmod o+x {}",
            usual.display(),
            user.name,
            barrier.display(),
            fallback().display(),
            barrier.display()
        );
    }
    let dir = fallback();
    check_owner(&dir)?;
    let note = format!(
        "user {} (who runs PostgreSQL) may not enter {}, so the cluster lives in {} (choose another with --dir)",
        user.name,
        barrier.display(),
        dir.display()
    );
    Ok(Place { dir, note: Some(note) })
}

/// Where a cluster may have been started from here, the likeliest place first.
pub fn candidates(requested: Option<&Path>) -> Vec<PathBuf> {
    let by_name = requested.map(Path::to_owned).or_else(|| std::env::var_os("HOWDAH_DEV_DIR").map(PathBuf::from));
    match by_name {
        Some(dir) => vec![dir],
        None => vec![PathBuf::from(".howdah-dev"), fallback()],
    }
}

/// The cluster that a second terminal means.
///
/// # Errors
/// When there is no cluster where one was looked for.
pub fn for_second_terminal(requested: Option<&Path>) -> anyhow::Result<Layout> {
    let candidates = candidates(requested);
    for dir in &candidates {
        let dir = std::path::absolute(dir).context("find the directory")?;
        if let Some(layout) = Layout::load(&dir)? {
            check_owner(&dir)?;
            return Ok(layout);
        }
    }
    let looked: Vec<String> = candidates.iter().map(|dir| dir.display().to_string()).collect();
    bail!(
        "find a cluster in {}: there is none; start one with `howdah dev`, or name it with --dir",
        looked.join(" or ")
    )
}

/// Creates a directory that PostgreSQL's user can pass through but not list.
///
/// # Errors
/// When it cannot be created.
pub fn create_passable(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
        .with_context(|| format!("set the mode of {}", dir.display()))
}

/// Creates a node's directory, owned by the user who runs PostgreSQL: it creates its data directory in it.
///
/// # Errors
/// When it cannot be created or given away.
pub fn create_node_dir(dir: &Path, user: Option<&OsUser>) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("set the mode of {}", dir.display()))?;
    if let Some(user) = user {
        chown(dir, Some(user.uid), user.groups.first().copied())
            .with_context(|| format!("give {} to user {}", dir.display(), user.name))?;
    }
    Ok(())
}

/// Moves a directory aside, to a name that says when. Nothing is deleted.
///
/// # Errors
/// When it cannot be renamed.
pub fn move_aside(dir: &Path) -> anyhow::Result<PathBuf> {
    let seconds = clock::wall().0.div_euclid(1000);
    let mut name = dir.as_os_str().to_owned();
    name.push(format!(".old-{seconds}"));
    let aside = PathBuf::from(name);
    fs::rename(dir, &aside).with_context(|| format!("move {} to {}", dir.display(), aside.display()))?;
    Ok(aside)
}

fn fallback() -> PathBuf {
    PathBuf::from(format!("/var/tmp/howdah-dev-{}", rustix::process::geteuid().as_raw()))
}

/// /var/tmp is open to all: a directory that somebody else prepared there must not be trusted.
fn check_owner(dir: &Path) -> anyhow::Result<()> {
    match fs::metadata(dir) {
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => {
            bail!("use {}: it belongs to another user (uid {}); name another with --dir", dir.display(), meta.uid())
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look at {}", dir.display())),
    }
}

/// The first existing directory on the way to `dir` that `user` may not enter.
pub fn barrier(dir: &Path, user: &OsUser) -> Option<PathBuf> {
    let mut way: Vec<&Path> = dir.ancestors().collect();
    way.reverse();
    for step in way {
        let Ok(meta) = fs::metadata(step) else { break };
        if !may_enter(meta.mode(), meta.uid(), meta.gid(), user) {
            return Some(step.to_owned());
        }
    }
    None
}

fn may_enter(mode: u32, owner: u32, group: u32, user: &OsUser) -> bool {
    if owner == user.uid {
        mode & 0o100 != 0
    } else if user.groups.contains(&group) {
        mode & 0o010 != 0
    } else {
        mode & 0o001 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody() -> OsUser {
        OsUser { name: "somebody".to_owned(), uid: 4_000_000, groups: vec![4_000_001] }
    }

    #[test]
    fn the_class_that_applies_first_decides() {
        let user = somebody();
        assert!(may_enter(0o100, user.uid, 0, &user));
        assert!(!may_enter(0o077, user.uid, 0, &user), "an owner gets no help from group and others");
        assert!(may_enter(0o010, 0, 4_000_001, &user));
        assert!(!may_enter(0o701, 0, 4_000_001, &user));
        assert!(may_enter(0o701, 0, 0, &user));
        assert!(!may_enter(0o770, 0, 0, &user));
    }

    #[test]
    fn a_closed_directory_on_the_way_is_named() {
        let outer = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).expect("open");
        let closed = outer.path().join("closed");
        fs::create_dir(&closed).expect("create");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("close");
        let wanted = closed.join("not/yet/there");
        assert_eq!(barrier(&wanted, &somebody()), Some(closed.clone()));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o711)).expect("open");
        assert_eq!(barrier(&wanted, &somebody()), None);
    }

    #[test]
    fn a_directory_asked_for_by_name_is_refused_with_a_remedy() {
        let closed = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).expect("close");
        let wanted = closed.path().join("cluster");
        let error = for_start(Some(&wanted), Some(&somebody())).expect_err("0700").to_string();
        assert!(error.contains("chmod o+x") && error.contains("--dir"), "{error}");
        let place = for_start(Some(&wanted), None).expect("our own user may");
        assert_eq!(place, Place { dir: wanted, note: None });
    }

    #[test]
    fn moving_aside_keeps_the_content() {
        let outer = tempfile::tempdir().expect("temporary directory");
        let dir = outer.path().join("cluster");
        fs::create_dir(&dir).expect("create");
        fs::write(dir.join("precious"), "kept").expect("write");
        let aside = move_aside(&dir).expect("move");
        assert!(!dir.exists());
        assert_eq!(fs::read_to_string(aside.join("precious")).expect("read"), "kept");
    }

    #[test]
    fn a_second_terminal_without_a_cluster_is_told_how_to_get_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = for_second_terminal(Some(dir.path())).expect_err("empty").to_string();
        assert!(error.contains("howdah dev") && error.contains("--dir"), "{error}");
    }
}
