//! Files that survive a crash: temporary name, fsync, rename, fsync of the directory.
//!
//! Owner and mode are set before the rename, so that no reader ever sees a file that is too open
//! or that belongs to the wrong user. Nothing here knows what the files mean.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::user::OsUser;

/// Largest configuration-like file that is read into memory.
const MAX_TEXT_FILE: u64 = 16 * 1024 * 1024;

/// Writes `content` so that after a crash either the old or the new file is there, whole.
pub(super) fn write_atomic(path: &Path, content: &[u8], mode: u32, owner: &OsUser) -> Result<(), Error> {
    let fail = |source| Error::WriteFile { path: path.to_owned(), source };
    let temporary = with_suffix(path, &format!(".howdah-tmp-{}", std::process::id()));
    let result = write_temporary(&temporary, content, mode, owner)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_parent(path));
    if result.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(fail)
}

fn write_temporary(path: &Path, content: &[u8], mode: u32, owner: &OsUser) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    owner.own_file(&file)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Writes only when the content differs. Returns whether it wrote.
pub(super) fn write_if_different(path: &Path, content: &[u8], mode: u32, owner: &OsUser) -> Result<bool, Error> {
    if read_optional(path)?.is_some_and(|old| old == content) {
        return Ok(false);
    }
    write_atomic(path, content, mode, owner)?;
    Ok(true)
}

/// Reads a small file; none when it does not exist.
pub(super) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let fail = |source| Error::ReadFile { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_TEXT_FILE => {
            Err(fail(io::Error::new(io::ErrorKind::InvalidData, "larger than 16 MiB, not a configuration file")))
        }
        Ok(_) => match fs::read(path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fail(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail(error)),
    }
}

/// Reads a small text file; bytes that are not UTF-8 are replaced. None when it does not exist.
pub(super) fn read_text_optional(path: &Path) -> Result<Option<String>, Error> {
    Ok(read_optional(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Removes a file if it exists, durably. Returns whether it was there.
pub(super) fn remove_durably(path: &Path) -> Result<bool, Error> {
    let fail = |source| Error::Remove { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true).map_err(fail),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fail(error)),
    }
}

/// Makes a directory with its parents; those that are new get `mode` and `owner`.
pub(super) fn ensure_dir(path: &Path, mode: u32, owner: &OsUser) -> Result<(), Error> {
    let fail = |source| Error::CreateDir { path: path.to_owned(), source };
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        ensure_dir(parent, 0o755, owner)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => owner.own_path(path).and_then(|()| sync_parent(path)).map_err(fail),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// Renames durably inside one file system.
pub(super) fn rename_durably(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).and_then(|()| sync_parent(from)).and_then(|()| sync_parent(to)).map_err(|source| {
        let why = match source.raw_os_error() {
            Some(libc::EXDEV | libc::EBUSY) => {
                "one of them is a mount point; use a directory below the mount as postgresql.data_dir, so that it can \
                 be renamed"
            }
            Some(libc::EACCES | libc::EPERM) => {
                "the parent directory must be writable for the user that PostgreSQL runs as"
            }
            Some(libc::ENOTEMPTY | libc::EEXIST) => "the new name is taken",
            _ => "the file system refused",
        };
        Error::Rename { from: from.to_owned(), to: to.to_owned(), why: why.to_owned(), source }
    })
}

/// Makes the entries of a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// The path with text appended to its last component.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

/// Whether another file system is mounted exactly here.
pub(super) fn is_mount_point(path: &Path) -> bool {
    let (Ok(here), Some(parent)) = (fs::symlink_metadata(path), path.parent()) else { return false };
    if here.file_type().is_symlink() {
        return false;
    }
    fs::metadata(parent).is_ok_and(|above| above.dev() != here.dev())
}

/// Compact UTC time for names: `20261122T201530Z`.
pub(super) fn compact_utc(wall: crate::types::WallTime) -> String {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    time::OffsetDateTime::from_unix_timestamp(wall.0.div_euclid(1000))
        .ok()
        .and_then(|t| t.format(&format).ok())
        .unwrap_or_else(|| wall.0.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WallTime;

    #[test]
    fn writes_once_and_keeps_the_mode() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("file");
        let owner = OsUser::current().expect("current user");
        assert!(write_if_different(&path, b"one", 0o600, &owner).expect("write"));
        assert!(!write_if_different(&path, b"one", 0o600, &owner).expect("same"));
        assert!(write_if_different(&path, b"two", 0o600, &owner).expect("write"));
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "no temporary file stays");
        assert!(remove_durably(&path).expect("remove"));
        assert!(!remove_durably(&path).expect("gone already"));
    }

    #[test]
    fn times_in_names_are_utc() {
        assert_eq!(compact_utc(WallTime(1_795_378_530_123)), "20261122T201530Z");
    }
}
