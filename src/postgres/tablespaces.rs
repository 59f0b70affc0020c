//! Directories that belong to a database cluster and lie outside its data directory: tablespaces, and a WAL
//! directory of its own.
//!
//! When the data directory is moved aside they go along, each beside its place; when a copy is made into them and
//! does not succeed they are emptied again, by PostgreSQL's user and never by root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Instance;
use super::conninfo::Upstream;
use super::data_dir::is_empty;
use super::error::Error;
use super::files::{is_mount_point, rename_durably, with_suffix};
use super::process::Tool;
use super::remote::column;
use super::sql;
use super::user::OsUser;

/// Limit for emptying one directory.
const REMOVE_LIMIT: Duration = Duration::from_secs(3600);

/// A symbolic link in the data directory and the directory outside that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outside {
    link: PathBuf,
    directory: PathBuf,
}

/// Finds what a data directory has outside.
pub(super) fn outside(data_dir: &Path) -> Result<Vec<Outside>, Error> {
    let mut candidates = vec![data_dir.join("pg_wal")];
    let tablespaces = data_dir.join("pg_tblspc");
    match fs::read_dir(&tablespaces) {
        Ok(entries) => candidates.extend(entries.flatten().map(|entry| entry.path())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::ReadFile { path: tablespaces, source }),
    }
    let target = |link: PathBuf| {
        let directory = fs::read_link(&link).ok().filter(|d| d.is_absolute() && !d.starts_with(data_dir))?;
        Some(Outside { link, directory })
    };
    Ok(candidates.into_iter().filter_map(target).collect())
}

/// Refuses before anything is moved when something outside cannot be renamed.
pub(super) fn check_movable(data_dir: &Path, operation: &'static str) -> Result<(), Error> {
    match outside(data_dir)?.into_iter().find(|o| is_mount_point(&o.directory)) {
        None => Ok(()),
        Some(fixed) => Err(Error::DataDirState {
            operation,
            path: data_dir.to_owned(),
            state: format!(
                "has {:?} outside, which is a mount point and cannot be renamed; move its files into a directory below",
                fixed.directory
            ),
        }),
    }
}

/// Moves what a data directory has outside along with it: `suffix` is what the data directory's name got.
///
/// Each old place is made again, empty and with the same owner. Repeating it after a crash goes on where it stopped.
pub(super) fn move_along(moved: &Path, suffix: &str, user: &OsUser) -> Result<(), Error> {
    for Outside { link, directory } in outside(moved)? {
        if directory.to_string_lossy().ends_with(suffix) {
            continue;
        }
        let target = with_suffix(&directory, suffix);
        let fail = |source| Error::WriteFile { path: link.clone(), source };
        let meta = match fs::metadata(&directory) {
            Ok(meta) => Some(meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::ReadFile { path: directory, source }),
        };
        if !target.exists() && meta.is_some() {
            rename_durably(&directory, &target)?;
        }
        if let Some(meta) = meta.filter(|_| !directory.exists()) {
            make_again(&directory, &meta, user).map_err(|source| Error::CreateDir { path: directory, source })?;
        }
        let new_link = with_suffix(&link, ".howdah-tmp");
        let _ = fs::remove_file(&new_link);
        symlink(&target, &new_link).and_then(|()| user.own_path(&new_link)).map_err(fail)?;
        rename_durably(&new_link, &link)?;
    }
    Ok(())
}

fn make_again(directory: &Path, like: &fs::Metadata, user: &OsUser) -> io::Result<()> {
    fs::create_dir(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(like.mode() & 0o7777))?;
    user.own_path(directory)
}

/// Empties directories that an unfinished copy had begun to fill.
///
/// The list comes from a file that PostgreSQL's user could have written, so the work is done as that user.
pub(super) async fn empty(directories: &[PathBuf], user: &OsUser) -> Result<(), Error> {
    for directory in directories.iter().filter(|d| d.is_dir()) {
        tracing::info!(directory = %directory.display(), "emptying what an unfinished copy had filled");
        Tool::new(Path::new("find"), user)
            .arg(directory)
            .args(["-mindepth", "1", "-delete"])
            .output(REMOVE_LIMIT)
            .await?;
    }
    Ok(())
}

/// Removes what moved along with a directory that is about to be removed: only what carries its suffix.
pub(super) async fn remove_along(moved: &Path, suffix: &str, user: &OsUser) -> Result<(), Error> {
    let along = outside(moved)?.into_iter().map(|o| o.directory);
    let along: Vec<PathBuf> = along.filter(|d| d.to_string_lossy().ends_with(suffix)).collect();
    empty(&along, user).await?;
    for path in along {
        match fs::remove_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Remove { path, source }),
        }
    }
    Ok(())
}

impl Instance {
    /// The directories outside that a copy of `from` will fill; each must be missing or empty now.
    pub(super) async fn outside_of_copy(&self, from: &Upstream) -> Result<Vec<PathBuf>, Error> {
        let options = &self.config.basebackup;
        let wal = options.iter().filter(|(name, _)| name == "waldir").filter_map(|(_, value)| value.clone());
        let mut directories: Vec<PathBuf> = wal.map(PathBuf::from).collect();
        match self.ask_remote(from, sql::TABLESPACES).await {
            Ok(results) => {
                let places = results.iter().flatten().filter_map(|row| column(row, "location"));
                directories.extend(places.map(|place| PathBuf::from(map_place(options, place))));
            }
            Err(error) => tracing::debug!(%error, "copying without a look at the tablespaces"),
        }
        for path in &directories {
            match is_empty(path) {
                Ok(true) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::ReadFile { path: path.clone(), source }),
                Ok(false) => {
                    return Err(Error::DataDirState {
                        operation: "base backup",
                        path: path.clone(),
                        state: "is where a tablespace or the WAL must go, and is not empty; move its content away, or \
                                set tablespace-mapping in postgresql.basebackup"
                            .to_owned(),
                    });
                }
            }
        }
        Ok(directories)
    }
}

/// Applies `tablespace-mapping` options, `old=new`.
fn map_place(options: &[(String, Option<String>)], place: &str) -> String {
    options
        .iter()
        .filter(|(name, _)| name == "tablespace-mapping")
        .filter_map(|(_, value)| value.as_deref()?.split_once('='))
        .find(|(old, _)| *old == place)
        .map_or_else(|| place.to_owned(), |(_, new)| new.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_directories_go_along_and_their_places_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let user = OsUser::current().expect("user");
        let moved = dir.path().join("data.failed-x");
        let place = dir.path().join("space");
        fs::create_dir_all(moved.join("pg_tblspc")).expect("directory");
        fs::create_dir(&place).expect("directory");
        fs::write(place.join("file"), "data").expect("file");
        symlink(&place, moved.join("pg_tblspc/16384")).expect("link");
        for _ in 0..2 {
            move_along(&moved, ".failed-x", &user).expect("moved along");
            assert!(dir.path().join("space.failed-x/file").exists());
            assert!(moved.join("pg_tblspc/16384/file").exists(), "the link leads to the new place");
            assert!(is_empty(&place).expect("the old place is there again"));
        }
    }

    #[test]
    fn mappings_are_applied() {
        let options = vec![("tablespace-mapping".to_owned(), Some("/a=/b".to_owned()))];
        assert_eq!(map_place(&options, "/a"), "/b");
        assert_eq!(map_place(&options, "/c"), "/c");
    }
}
