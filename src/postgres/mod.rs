//! One local PostgreSQL: everything around the postmaster, except starting, stopping, promoting and fencing it.
//!
//! ```text
//! inspect (files) . status (SQL)                 what is
//! initdb | basebackup | rewind | move_aside      what is in the data directory
//! configure . prepare_standby . start_spec       what the guardian will start
//! bootstrap_roles . slots . checkpoint . reload  what a running server is asked to do
//! ```
//!
//! Every step may be repeated: a crash may fall between any two. Files are written whole or not at all. Nothing that
//! could hold data is ever deleted. The guardian owns the process; decisions are made in `ha`.

mod adoption;
mod aside;
mod basebackup;
mod binaries;
mod conf;
mod configure;
mod conninfo;
mod control_data;
mod credentials;
mod data_dir;
mod error;
mod files;
mod hba;
mod hooks;
mod initdb;
mod methods;
mod process;
mod remote;
mod replication;
mod rewind;
mod roles;
mod session;
mod settings;
mod sql;
mod staging;
mod start;
mod status;
mod tablespaces;
mod unfinished;
mod units;
mod user;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// For the fuzz targets alone.
pub mod internals {
    pub use super::conninfo::conninfo;
}

pub use adoption::{DatabaseFacts, Preflight, SlotFacts};
pub use aside::{KeptAside, MovedAs};
pub use basebackup::{Progress, Stage};
pub use binaries::Binaries;
pub use configure::{ConfigureOutcome, Follow, Needs, ServerSettings};
pub use conninfo::Upstream;
pub use control_data::{ControlData, ControlState, StandbyFloors};
pub use credentials::{Credentials, Login, generate_password};
pub use data_dir::{DataDir, PresentDataDir};
pub use error::{Error, NotAccepting, StatusError};
pub use hba::{AccessFile, wrong_lines};
pub use methods::{Method, Restore};
pub use remote::RemoteState;
pub use replication::SlotChanges;
pub use rewind::GivenUp;
pub use settings::RefusedSetting;
pub use start::StartSpec;
pub use status::{PendingRestart, PrimaryPositions, ReplicaState, Slot, SqlRole, SqlStatus, WalReceiver, WalSender};
pub use user::OsUser;

use crate::types::{ClusterName, Lsn, NodeName, SystemId, TimelineHistory, TimelineId};
use session::{Endpoint, Purpose, Session};
use status::Kept;

/// Longest path of a socket that every platform takes.
const LONGEST_SOCKET_PATH: usize = 103;

/// What the node's file says about its PostgreSQL.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// This node's name: `application_name` of its replication.
    pub name: NodeName,
    /// The cluster's name: `cluster_name` of the server.
    pub cluster: ClusterName,
    /// The data directory. A directory below a mount point, never the mount point itself: it gets renamed.
    pub data_dir: PathBuf,
    /// Where PostgreSQL's programs are; none searches for them.
    pub bin_dir: Option<PathBuf>,
    /// `listen_addresses`: hosts separated by commas, or `*`.
    pub listen: String,
    /// Port of the server.
    pub port: u16,
    /// Host and port under which the other members and clients reach it.
    pub connect_address: (String, u16),
    /// User to run PostgreSQL as when started by root.
    pub os_user: Option<String>,
    /// Holds the socket and the password file; short, and made if missing.
    pub run_dir: PathBuf,
    /// Where the server's error output goes.
    pub log_file: PathBuf,
    /// Parameters of this node alone.
    pub parameters: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf`; win over those of the record.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of `pg_ident.conf`; win over those of the record.
    pub pg_ident: Option<Vec<String>>,
    /// `restore_command` and its like; win over those of the record.
    pub recovery: BTreeMap<String, String>,
    /// Base configuration file to include; none takes `postgresql.base.conf` in the data directory.
    pub base_conf: Option<PathBuf>,
    /// Database for howdah's own sessions, normally `postgres`.
    pub database: String,
    /// Options for initdb by long name without dashes, as Patroni's `bootstrap.initdb`: `("data-checksums", None)`.
    pub initdb: Vec<(String, Option<String>)>,
    /// Options for pg_basebackup by long name without dashes: `("max-rate", Some("100M"))`.
    pub basebackup: Vec<(String, Option<String>)>,
    /// How copies are made, in the order in which the ways are tried; empty = by pg_basebackup.
    pub copy_methods: Vec<Method>,
    /// How the first data directory of a cluster is made; none = by initdb.
    pub restore: Option<Restore>,
    /// Connect over the socket in `run_dir` first; otherwise TCP alone.
    pub use_unix_socket: bool,
    /// How many directories that were moved aside are kept; none keeps all.
    pub keep_aside: Option<usize>,
}

/// What a node's file may change while PostgreSQL runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalSettings {
    /// Parameters of this node alone.
    pub parameters: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf`; win over those of the record.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of `pg_ident.conf`; win over those of the record.
    pub pg_ident: Option<Vec<String>>,
    /// `restore_command` and its like; win over those of the record.
    pub recovery: BTreeMap<String, String>,
}

/// The local PostgreSQL. Cheap to share in an `Arc`; all methods take `&self`.
///
/// The caller runs at most one of the long or writing operations at a time; `inspect` and `status` may run beside.
pub struct Instance {
    config: InstanceConfig,
    binaries: Binaries,
    user: OsUser,
    warnings: Vec<String>,
    credentials: Mutex<Option<Credentials>>,
    /// Values of the next command line, known after `configure`.
    controlled: Mutex<BTreeMap<String, String>>,
    /// The last rendered file that PostgreSQL refused in part, with what was refused.
    refused: Mutex<Option<(String, Vec<RefusedSetting>)>>,
    /// What the node's file says of parameters and access; it may be read again.
    local: Mutex<LocalSettings>,
    /// The kept session for `status`.
    session: tokio::sync::Mutex<Option<Kept>>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("data_dir", &self.config.data_dir).field("user", &self.user).finish()
    }
}

impl Instance {
    /// Checks that programs, user and paths are usable. Changes nothing.
    ///
    /// # Errors
    /// `FindBinaries`, `UnsupportedVersion`, `ResolveUser`, `CheckConfig`: each names what a person must do.
    pub fn new(mut config: InstanceConfig) -> Result<Self, Error> {
        let absolute = |what, path: &Path| {
            if path.is_absolute() && path.parent().is_some() {
                return Ok(());
            }
            Err(Error::CheckConfig { what, why: format!("{path:?} must be an absolute path and not the root") })
        };
        absolute("postgresql.data_dir", &config.data_dir)?;
        absolute("run_dir", &config.run_dir)?;
        absolute("log_file", &config.log_file)?;
        if config.run_dir.starts_with(&config.data_dir) {
            return Err(Error::CheckConfig {
                what: "run_dir",
                why: format!("{:?} lies inside the data directory, which gets replaced", config.run_dir),
            });
        }
        // Directories are renamed beside the real place; a link to it stays valid.
        if let Ok(real) = std::fs::canonicalize(&config.data_dir) {
            config.data_dir = real;
        }
        initdb::check_options(&config.initdb)?;
        basebackup::check_options(&config.basebackup)?;
        let binaries = Binaries::find(config.bin_dir.as_deref())?;
        let user = OsUser::resolve(config.os_user.as_deref(), &config.data_dir)?;
        let mut warnings = Vec::new();
        if files::is_mount_point(&config.data_dir) {
            warnings.push(format!(
                "data directory {:?} is a mount point: it cannot be renamed, so this node cannot be rebuilt \
                 automatically; use a directory below it",
                config.data_dir
            ));
        }
        if config.use_unix_socket && !fits_socket(&config) {
            warnings.push(format!(
                "run directory {:?} is too long for a socket; connecting over TCP instead",
                config.run_dir
            ));
        }
        let major = Some(binaries.version().major());
        for (key, file, lines) in [
            ("postgresql.pg_hba", AccessFile::Hba, &config.pg_hba),
            ("postgresql.pg_ident", AccessFile::Ident, &config.pg_ident),
        ] {
            let wrong = lines.iter().flat_map(|lines| wrong_lines(file, lines, major));
            warnings.extend(wrong.map(|wrong| format!("{key}: {wrong}")));
        }
        let local = LocalSettings {
            parameters: config.parameters.clone(),
            pg_hba: config.pg_hba.clone(),
            pg_ident: config.pg_ident.clone(),
            recovery: config.recovery.clone(),
        };
        Ok(Self {
            local: Mutex::new(local),
            config,
            binaries,
            user,
            warnings,
            credentials: Mutex::new(None),
            controlled: Mutex::new(BTreeMap::new()),
            refused: Mutex::new(None),
            session: tokio::sync::Mutex::new(None),
        })
    }

    /// Findings of [`Instance::new`] that do not prevent the work, for the log and for `howdah config check`.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What it was made from.
    pub fn config(&self) -> &InstanceConfig {
        &self.config
    }

    /// The programs in use.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The user that PostgreSQL runs as.
    pub fn user(&self) -> &OsUser {
        &self.user
    }

    /// Tells the logins. Until then only the socket and the superuser `postgres` are tried.
    pub fn set_credentials(&self, credentials: &Credentials) {
        let mut known = self.credentials.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *known = Some(credentials.clone());
    }

    /// Examines the data directory; works whether the server runs or not.
    pub async fn inspect(&self) -> DataDir {
        data_dir::inspect(&self.config.data_dir, &self.binaries, &self.user).await
    }

    /// Whether the place of the data directory still holds one, at a glance. False only if it certainly does not.
    pub fn data_is_there(&self) -> bool {
        let version = std::fs::metadata(self.config.data_dir.join("PG_VERSION"));
        version.err().is_none_or(|error| error.kind() != std::io::ErrorKind::NotFound)
    }

    /// The newest timeline of which a WAL segment is here; none when there is no WAL or it cannot be listed.
    ///
    /// A standby has a segment of every timeline that it has received or replayed anything of, also when neither
    /// its control file nor a WAL receiver says so any more.
    pub fn newest_wal_timeline(&self) -> Option<TimelineId> {
        data_dir::newest_wal_timeline(&self.config.data_dir)
    }

    /// Reads the history of a timeline from the local `pg_wal`.
    ///
    /// # Errors
    /// `ReadFile` also when the file is not there; `ParseHistory`.
    pub fn timeline_history(&self, timeline: TimelineId) -> Result<TimelineHistory, Error> {
        let found = data_dir::read_history(&self.config.data_dir, timeline)?;
        found.ok_or_else(|| Error::ReadFile {
            path: self.config.data_dir.join("pg_wal").join(data_dir::history_file_name(timeline)),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    /// Has the next promotion here use `timeline`, and not a number that PostgreSQL finds free: for each one between
    /// `here`, the newest of which there is anything, and that one there will be a history file, in which nothing but
    /// a comment stands. Returns the numbers that are passed over.
    ///
    /// PostgreSQL takes the first number without such a file (`timeline.c`, `findNewestTimeLine`). A standby that
    /// comes from an older timeline asks the new primary for the file of each number, too.
    ///
    /// # Errors
    /// When a file cannot be written. None is ever replaced.
    pub fn pass_over_timelines(&self, here: TimelineId, timeline: TimelineId) -> Result<Vec<TimelineId>, Error> {
        data_dir::pass_over_timelines(&self.config.data_dir, &self.user, here, timeline)
    }

    /// Asks the running server for its state, within two seconds.
    ///
    /// # Errors
    /// Typed; only `Refused` says that nobody is there. `Query` and `Timeout` say nothing about life or death.
    pub async fn status(&self) -> Result<SqlStatus, StatusError> {
        let limit = status::STATUS_LIMIT;
        let controlled = self.controlled();
        let ask = async {
            let mut slot = self.session.lock().await;
            if let Some(mut kept) = slot.take().filter(|kept| !kept.is_closed()) {
                match kept.ask(&controlled).await {
                    // The kept connection broke (restart, idle timeout): one new one tells what is the case.
                    Err(StatusError::ConnectionLost { .. }) => {}
                    Err(error @ StatusError::Timeout { .. }) => return Err(error),
                    answer => {
                        *slot = Some(kept);
                        return answer;
                    }
                }
            }
            let mut kept = Kept::new(self.open(status::STATUS_PURPOSE).await?);
            let answer = kept.ask(&controlled).await?;
            *slot = Some(kept);
            Ok(answer)
        };
        tokio::time::timeout(limit, ask).await.unwrap_or(Err(StatusError::Timeout { after: limit }))
    }

    /// Writes all dirty pages, so that a following stop is short, or that a new primary's timeline is on disk.
    ///
    /// # Errors
    /// `Sql`, also when it is not done within `limit`; the checkpoint then goes on.
    pub async fn checkpoint(&self, limit: Duration) -> Result<(), Error> {
        self.ask("checkpoint", "CHECKPOINT", limit).await.map(|_| ())
    }

    /// The position of the checkpoint with which a primary was stopped: start and end of its record.
    ///
    /// A candidate that has received up to the end has everything that was ever acknowledged.
    ///
    /// # Errors
    /// `DataDirState` unless the server was stopped cleanly as primary.
    pub async fn shutdown_checkpoint(&self) -> Result<ShutdownCheckpoint, Error> {
        let control = data_dir::read_control_data(&self.config.data_dir, &self.binaries, &self.user).await?;
        if control.state != ControlState::ShutDown {
            return Err(Error::DataDirState {
                operation: "read shutdown checkpoint",
                path: self.config.data_dir.clone(),
                state: format!("was not stopped cleanly as a primary, its state is {:?}", control.state),
            });
        }
        let end = rewind::end_of_record(self, &control).await?;
        Ok(ShutdownCheckpoint { timeline: control.timeline, start: control.checkpoint, end })
    }

    /// Marks the end of a bootstrap: from here on the directory counts as whole.
    ///
    /// Called once the cluster's record holds the system identifier.
    ///
    /// # Errors
    /// `Remove`.
    pub fn seal(&self) -> Result<(), Error> {
        unfinished::Unfinished::remove(&self.config.data_dir)
    }

    /// Makes the next start a standby's, durably.
    ///
    /// # Errors
    /// `WriteFile`, `Remove`.
    pub fn prepare_standby(&self) -> Result<(), Error> {
        data_dir::write_standby_signal(&self.config.data_dir, &self.user)
    }

    /// Makes the next start a primary's, durably. For the first start after initdb and for a restart under a permit.
    ///
    /// # Errors
    /// `Remove`.
    pub fn prepare_primary(&self) -> Result<(), Error> {
        data_dir::remove_signal(&self.config.data_dir, "standby.signal")?;
        // A new cluster that is made from a backup recovers first, and has its own word on how far.
        if self.recovers_from_backup() {
            return Ok(());
        }
        data_dir::remove_signal(&self.config.data_dir, "recovery.signal")
    }

    /// Whether the data here is a restored backup that has not ended its recovery: only ever in the creation of a cluster.
    pub(super) fn recovers_from_backup(&self) -> bool {
        let dir = &self.config.data_dir;
        self.config.restore.is_some()
            && dir.join("recovery.signal").exists()
            && unfinished::Unfinished::path(dir).exists()
    }

    /// The postmaster that works in the data directory, whatever state that is in; none also when it cannot be told.
    pub fn postmaster(&self) -> Option<u32> {
        data_dir::running_postmaster(&self.config.data_dir).ok().flatten()
    }

    /// Asks the running postmaster to read its files again. Works while it does not accept sessions.
    ///
    /// # Errors
    /// `DataDirState` when no postmaster runs.
    pub fn reload(&self) -> Result<(), Error> {
        let pid = data_dir::running_postmaster(&self.config.data_dir)?;
        let target = pid.and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw);
        let sent = target.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::HUP));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => Err(Error::DataDirState {
                operation: "reload",
                path: self.config.data_dir.clone(),
                state: "has no running server".to_owned(),
            }),
        }
    }

    fn credentials(&self) -> Option<Credentials> {
        self.credentials.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn local(&self) -> LocalSettings {
        self.local.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The node's file has been read again. Takes effect with the next `configure`.
    pub fn set_local(&self, local: LocalSettings) {
        *self.local.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = local;
    }

    fn controlled(&self) -> BTreeMap<String, String> {
        self.controlled.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The superuser's login; without credentials its usual name and no password.
    fn superuser(&self) -> Login {
        self.credentials().map_or_else(|| Login::new("postgres", ""), |c| c.superuser)
    }

    fn socket_dir(&self) -> Option<&Path> {
        (self.config.use_unix_socket && fits_socket(&self.config)).then_some(self.config.run_dir.as_path())
    }

    fn password_file(&self) -> PathBuf {
        self.config.run_dir.join("pgpass")
    }

    /// Our socket, the socket that a server has which was started with other settings, then TCP.
    fn endpoints(&self) -> Vec<Endpoint> {
        let host = self.config.listen.split(',').map(str::trim).find(|h| !h.is_empty());
        let host = match host {
            None | Some("*" | "0.0.0.0") => "127.0.0.1",
            Some("::") => "::1",
            Some(other) => other,
        };
        // The port is the running server's: a changed one waits for a restart.
        let alive = matches!(data_dir::running_postmaster(&self.config.data_dir), Ok(Some(_)));
        let running = alive.then(|| data_dir::listening(&self.config.data_dir)).flatten();
        let port = running.as_ref().map_or(self.config.port, |r| r.port);
        let mut directories: Vec<PathBuf> = self.socket_dir().map(Path::to_owned).into_iter().collect();
        if let Some(theirs) = running.and_then(|r| r.socket_dir).filter(|_| self.config.use_unix_socket)
            && !directories.contains(&theirs)
        {
            directories.push(theirs);
        }
        let sockets = directories.into_iter().map(|dir| Endpoint::Socket(dir, port));
        sockets.chain([Endpoint::Tcp(host.to_owned(), port)]).collect()
    }

    async fn open(&self, purpose: Purpose) -> Result<Session, StatusError> {
        let session = Session::open(&self.endpoints(), &self.superuser(), &self.config.database, purpose).await?;
        // Over TCP another node's server may answer; it knows the same passwords.
        let rows = session.run(sql::DATA_DIRECTORY, purpose.statement_timeout).await?;
        let found = rows.iter().flatten().next().and_then(|row| row.text("data_directory")).unwrap_or_default();
        let found = std::fs::canonicalize(found).unwrap_or_else(|_| PathBuf::from(found));
        if found == std::fs::canonicalize(&self.config.data_dir).unwrap_or_else(|_| self.config.data_dir.clone()) {
            return Ok(session);
        }
        Err(StatusError::OtherServer { expected: self.config.data_dir.clone(), found })
    }

    /// One question in a session of its own.
    async fn ask(
        &self,
        operation: &'static str,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<Vec<session::TextRow>>, Error> {
        let purpose = Purpose::local(limit);
        let work = async { self.open(purpose).await?.run(sql, limit).await };
        work.await.map_err(|source| Error::Sql { operation, source })
    }
}

/// Where a clean stop of a primary ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownCheckpoint {
    /// On this timeline.
    pub timeline: TimelineId,
    /// First byte of the checkpoint record.
    pub start: Lsn,
    /// First position behind it: whoever has received this has it all.
    pub end: Lsn,
}

fn fits_socket(config: &InstanceConfig) -> bool {
    let name = format!("/.s.PGSQL.{}", config.port);
    config.run_dir.as_os_str().len() + name.len() <= LONGEST_SOCKET_PATH
}

/// Which cluster a server belongs to must be the same wherever data moves between servers.
fn check_same_cluster(
    operation: &'static str,
    upstream: &Upstream,
    ours: SystemId,
    theirs: SystemId,
) -> Result<(), Error> {
    if ours == theirs {
        return Ok(());
    }
    Err(Error::SystemIdDiffers { operation, upstream: upstream.address(), ours, theirs })
}
