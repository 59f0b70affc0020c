//! Physical slots of the members, permanent slots of both kinds, and WAL senders.
//!
//! Only names that the caller declares are ever created, dropped or advanced; all other slots belong to someone else
//! and are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Instance;
use super::conninfo::Upstream;
use super::error::{Error, StatusError};
use super::files::{ensure_dir, write_atomic};
use super::remote::{column, decode_hex};
use super::session::{Purpose, Session};
use super::sql;
use crate::types::Lsn;

/// Limit for one change.
const LIMIT: Duration = Duration::from_secs(5);

/// What was done to the slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotChanges {
    /// New.
    pub created: Vec<String>,
    /// Gone.
    pub dropped: Vec<String>,
    /// Made again: they had lost their WAL or reserved none.
    pub recreated: Vec<String>,
    /// Wanted or to be dropped, and not possible now, with the reason.
    pub failed: BTreeMap<String, String>,
}

impl SlotChanges {
    /// Whether nothing had to be done and nothing failed.
    pub fn is_empty(&self) -> bool {
        self.created.is_empty() && self.dropped.is_empty() && self.recreated.is_empty() && self.failed.is_empty()
    }
}

/// What to do with one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Create(String),
    Recreate(String),
    Drop(String),
    Fail(String, String),
}

/// A slot as far as its upkeep needs it.
#[derive(Debug, Clone)]
struct Existing {
    name: String,
    physical: bool,
    active: bool,
    reserves: bool,
    lost: bool,
}

impl Instance {
    /// Makes the slots in `wanted` exist and those in `retired` disappear.
    ///
    /// `retired` are slots of members that are gone for good; a name in both is wanted. Works on a primary and on a
    /// standby. One slot that fails does not keep the others from being done.
    ///
    /// # Errors
    /// `Sql` when the server cannot be asked at all.
    pub async fn sync_member_slots(
        &self,
        wanted: &BTreeSet<String>,
        retired: &BTreeSet<String>,
    ) -> Result<SlotChanges, Error> {
        let fail = |source| Error::Sql { operation: "read replication slots", source };
        let session = self.open(Purpose::local(LIMIT)).await.map_err(fail)?;
        let existing = read_existing(&session).await.map_err(fail)?;
        let mut changes = SlotChanges::default();
        for change in plan(&existing, wanted, retired) {
            apply(&session, change, &mut changes).await;
        }
        Ok(changes)
    }

    /// Makes the logical slots in `wanted` (database and plugin by name) exist, and those in `retired` disappear. On a
    /// primary.
    ///
    /// # Errors
    /// `Sql` when the server cannot be asked at all; what fails alone is in `changes`.
    pub async fn sync_logical_slots(
        &self,
        wanted: &BTreeMap<String, (String, String)>,
        retired: &BTreeSet<String>,
        changes: &mut SlotChanges,
    ) -> Result<(), Error> {
        if wanted.is_empty() && retired.is_empty() {
            return Ok(());
        }
        let fail = |source| Error::Sql { operation: "read replication slots", source };
        let session = self.open(Purpose::local(LIMIT)).await.map_err(fail)?;
        let rows = session.run(sql::SLOTS, LIMIT).await.map_err(fail)?;
        let rows: Vec<_> = rows.iter().flatten().collect();
        let find = |name: &str| rows.iter().find(|row| row.text("slot_name") == Some(name));
        for name in retired {
            if find(name).is_some_and(|row| row.text("slot_type") == Some("logical") && !row.flag("active")) {
                match session.run(&sql::drop_slot(name), LIMIT).await {
                    Ok(_) => changes.dropped.push(name.clone()),
                    Err(error) => drop(changes.failed.insert(name.clone(), error.to_string())),
                }
            }
        }
        let failover = 17 <= self.binaries.version().major();
        for (name, (database, plugin)) in wanted {
            match find(name) {
                Some(row) if (row.text("database"), row.text("plugin")) == (Some(database), Some(plugin)) => (),
                Some(_) => {
                    let why = format!(
                        "there is another slot of this name; drop it, or rename one (wanted: {plugin} in {database})"
                    );
                    changes.failed.insert(name.clone(), why);
                }
                None => match self.run_in(database, &sql::create_logical_slot(name, plugin, failover)).await {
                    Ok(()) => changes.created.push(name.clone()),
                    Err(error) => drop(changes.failed.insert(name.clone(), error.to_string())),
                },
            }
        }
        Ok(())
    }

    async fn run_in(&self, database: &str, sql: &str) -> Result<(), StatusError> {
        let session = Session::open(&self.endpoints(), &self.superuser(), database, Purpose::local(LIMIT)).await?;
        session.run(sql, LIMIT).await.map(|_| ())
    }

    /// Reads the state of a logical slot of another server; none when it has no such slot.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn remote_slot(&self, from: &Upstream, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let results = self.ask_remote(from, &sql::read_file(&format!("pg_replslot/{name}/state"))).await?;
        let content = results.first().and_then(|rows| rows.first()).and_then(|row| column(row, "content"));
        Ok(content.and_then(decode_hex))
    }

    /// Puts the state of a logical slot in place, for a server that does not run. A slot that is there stays.
    ///
    /// # Errors
    /// `WriteFile`.
    pub fn put_slot(&self, name: &str, state: &[u8]) -> Result<(), Error> {
        let dir = self.config.data_dir.join("pg_replslot").join(name);
        if dir.exists() {
            return Ok(());
        }
        ensure_dir(&dir, 0o700, &self.user)?;
        write_atomic(&dir.join("state"), state, 0o600, &self.user)
    }

    /// Moves slots that nobody uses here forward, so that they do not hold WAL for ever on a standby.
    ///
    /// A slot never moves back nor past what this server has replayed; the server sees to the latter.
    ///
    /// # Errors
    /// `Sql` when the server cannot be asked at all; single failures are in the answer by slot name.
    pub async fn advance_slots(&self, to: &BTreeMap<String, Lsn>) -> Result<BTreeMap<String, String>, Error> {
        let mut failed = BTreeMap::new();
        if to.is_empty() {
            return Ok(failed);
        }
        let fail = |source| Error::Sql { operation: "read replication slots", source };
        let session = self.open(Purpose::local(LIMIT)).await.map_err(fail)?;
        let rows = session.run(sql::SLOTS, LIMIT).await.map_err(fail)?;
        for row in rows.iter().flatten() {
            let Some((name, &target)) = row.text("slot_name").and_then(|n| to.get_key_value(n)) else { continue };
            let at: Option<Lsn> = row.parse("restart_lsn").map_err(fail)?;
            if row.flag("active") || at.is_none_or(|at| target <= at) {
                continue;
            }
            let moved = match row.text("database") {
                Some(database) => self.run_in(database, &sql::advance_slot(name, target)).await,
                None => session.run(&sql::advance_slot(name, target), LIMIT).await.map(|_| ()),
            };
            if let Err(error) = moved {
                failed.insert(name.clone(), error.to_string());
            }
        }
        Ok(failed)
    }

    /// Ends the WAL senders of a member, for one that hangs during a stop.
    ///
    /// # Errors
    /// `Sql`.
    pub async fn terminate_senders(&self, member: &str) -> Result<(), Error> {
        self.ask("terminate WAL senders", &sql::terminate_senders(member), LIMIT).await.map(|_| ())
    }
}

async fn read_existing(session: &Session) -> Result<Vec<Existing>, StatusError> {
    let rows = session.run(sql::SLOTS, LIMIT).await?;
    rows.iter()
        .flatten()
        .filter(|row| !row.flag("temporary"))
        .map(|row| {
            Ok(Existing {
                name: row.required("slot_name")?.to_owned(),
                physical: row.text("slot_type") == Some("physical"),
                active: row.flag("active"),
                reserves: row.text("restart_lsn").is_some(),
                lost: row.text("wal_status") == Some("lost"),
            })
        })
        .collect()
}

/// Pure: what has to be done.
fn plan(existing: &[Existing], wanted: &BTreeSet<String>, retired: &BTreeSet<String>) -> Vec<Change> {
    let mut changes = Vec::new();
    for name in wanted {
        match existing.iter().find(|slot| slot.name == *name) {
            None => changes.push(Change::Create(name.clone())),
            Some(slot) if !slot.physical => changes.push(Change::Fail(
                name.clone(),
                "a logical slot has this member's name; rename the member or drop the slot".to_owned(),
            )),
            Some(slot) if !slot.active && (slot.lost || !slot.reserves) => {
                changes.push(Change::Recreate(name.clone()));
            }
            Some(_) => {}
        }
    }
    for slot in existing.iter().filter(|slot| retired.contains(&slot.name) && !wanted.contains(&slot.name)) {
        if slot.physical && !slot.active {
            changes.push(Change::Drop(slot.name.clone()));
        } else if slot.physical {
            changes.push(Change::Fail(slot.name.clone(), "it is in use".to_owned()));
        }
    }
    changes
}

async fn apply(session: &Session, change: Change, changes: &mut SlotChanges) {
    let created = |error: StatusError| match error {
        // Someone was faster: it is there, which is all that was wanted.
        StatusError::Query { sqlstate, .. } if sqlstate == "42710" => Ok(()),
        other => Err(other),
    };
    let dropped = |error: StatusError| match error {
        StatusError::Query { sqlstate, .. } if sqlstate == "42704" => Ok(()),
        other => Err(other),
    };
    let run = async |sql: String| session.run(&sql, LIMIT).await.map(|_| ());
    let (name, done) = match change {
        Change::Fail(name, why) => {
            changes.failed.insert(name, why);
            return;
        }
        Change::Create(name) => {
            let done = run(sql::create_slot(&name)).await.or_else(created);
            (name, done.map(|()| &mut changes.created))
        }
        Change::Recreate(name) => {
            let gone = run(sql::drop_slot(&name)).await.or_else(dropped);
            let done = match gone {
                Ok(()) => run(sql::create_slot(&name)).await.or_else(created),
                Err(error) => Err(error),
            };
            (name, done.map(|()| &mut changes.recreated))
        }
        Change::Drop(name) => {
            let done = run(sql::drop_slot(&name)).await.or_else(dropped);
            (name, done.map(|()| &mut changes.dropped))
        }
    };
    match done {
        Ok(list) => list.push(name),
        Err(error) => {
            changes.failed.insert(name, error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, physical: bool, active: bool, reserves: bool, lost: bool) -> Existing {
        Existing { name: name.to_owned(), physical, active, reserves, lost }
    }

    #[test]
    fn foreign_slots_are_never_touched() {
        let existing = [
            slot("n1", true, true, true, false),
            slot("n2", true, false, true, true),
            slot("n4", true, false, false, false),
            slot("gone", true, false, true, false),
            slot("busy", true, true, true, false),
            slot("backup", true, false, true, true),
            slot("cdc", false, false, true, false),
            slot("n5", false, false, true, false),
        ];
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let changes = plan(&existing, &set(&["n1", "n2", "n3", "n4", "n5"]), &set(&["gone", "busy", "cdc", "n1"]));
        let names: Vec<String> = changes.iter().map(|c| format!("{c:?}").chars().take(14).collect()).collect();
        assert_eq!(changes.len(), 6, "{names:?}");
        assert!(changes.contains(&Change::Create("n3".to_owned())));
        assert!(changes.contains(&Change::Recreate("n2".to_owned())));
        assert!(changes.contains(&Change::Recreate("n4".to_owned())));
        assert!(changes.contains(&Change::Drop("gone".to_owned())));
        assert!(changes.contains(&Change::Fail("busy".to_owned(), "it is in use".to_owned())));
        assert!(matches!(&changes[4], Change::Drop(_) | Change::Fail(..)));
    }
}
