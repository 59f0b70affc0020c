//! Plain files of the store: written whole, made durable by name, locked against other processes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::Error;

/// Says what was tried on which file.
pub fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

/// Damage in a file of the store in `dir`.
pub fn damaged(dir: &Path, path: PathBuf, what: impl Into<String>) -> Error {
    Error::Damaged { path, dir: dir.to_owned(), what: what.into() }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// [`Error::File`].
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(file_error("sync directory", dir))
}

/// Writes a file so that after a crash it is there completely or not at all.
///
/// # Errors
/// [`Error::File`]; what was under that name before is still there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).map_err(file_error("create file", &temporary))?;
    file.write_all(bytes).map_err(file_error("write file", &temporary))?;
    file.sync_all().map_err(file_error("sync file", &temporary))?;
    fs::rename(&temporary, path).map_err(file_error("rename file to", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Takes `dir/LOCK`, held until the file is dropped.
///
/// # Errors
/// [`Error::Locked`] when another process has it.
pub fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("LOCK");
    let options = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = options.map_err(file_error("open lock file", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked { path: dir.to_owned() }),
        Err(errno) => Err(file_error("lock file", &path)(errno.into())),
    }
}
