//! Health checks: one pure function from path, query, snapshot and time to yes or no.
//!
//! Paths match by substring, in a fixed order, because that is how Patroni's do and how load balancers came to use
//! them (`/read-write`, `/replica?lag=16MB`, `//leader`). Deliberately absent: any look at PostgreSQL. A probe must
//! answer while the database hangs.
//!
//! Source: reference section 1.2; the numbers below are its rows.

use crate::agent::snapshot::{
    ClusterStatus, MemberRole, PostgresState, PostgresStatus, ReplicationState, Role, Snapshot, WalPosition,
};
use crate::types::{ByteSize, Lsn, Mono};

/// Query parameters, decoded, in order. The first one of a name counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, value)| Some((name.strip_prefix("tag_")?, value.as_str())))
    }

    /// `lag` in bytes. What cannot be parsed counts as absent, as Patroni has it.
    fn lag(&self) -> Option<u64> {
        self.get("lag").and_then(|text| text.parse::<ByteSize>().ok()).map(|size| size.0)
    }
}

/// Splits `a=1&b=2`, undoing `%XX` and `+`. Parameters without a value are left out.
pub fn parse_query(text: &str) -> Query {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    Query(pairs.filter(|(_, value)| !value.is_empty()).map(|(name, value)| (decoded(name), decoded(value))).collect())
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        let hex: Option<u8> = (byte == b'%')
            .then(|| rest.as_slice().get(..2).and_then(|two| std::str::from_utf8(two).ok()))
            .flatten()
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        match (byte, hex) {
            (_, Some(value)) => {
                rest.nth(1);
                bytes.push(value);
            }
            (b'+', None) => bytes.push(b' '),
            (other, None) => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The terms of which the rows are made.
struct Terms<'a> {
    postgres: Option<&'a PostgresStatus>,
    cluster: Option<&'a ClusterStatus>,
    name: &'a str,
    primary_ok: bool,
    standby_leader_ok: bool,
    leader_ok: bool,
    replica_ok: bool,
}

impl<'a> Terms<'a> {
    fn new(snapshot: &'a Snapshot, query: &Query, now: Mono) -> Self {
        let postgres = snapshot.postgres.as_ref();
        let cluster = young_view(snapshot, now);
        let is = |roles: &[Role]| postgres.is_some_and(|pg| roles.contains(&pg.role));
        let standby_cluster =
            snapshot.cluster.as_ref().is_some_and(|cluster| cluster.settings.standby_cluster.is_some());
        let replica_ok = postgres.is_some_and(|pg| {
            pg.role == Role::Replica
                && pg.state == PostgresState::Running
                && !is_true(snapshot.tags.get("noloadbalance"))
                && !is_lagging(pg, cluster, query)
        });
        let mut terms = Self {
            postgres,
            cluster,
            name: snapshot.name.as_str(),
            primary_ok: false,
            standby_leader_ok: false,
            leader_ok: false,
            replica_ok,
        };
        if cluster.is_none() && snapshot.is_paused() {
            terms.primary_ok = is(&[Role::Primary]);
            terms.standby_leader_ok = is(&[Role::StandbyLeader]);
            terms.leader_ok = terms.primary_ok || terms.standby_leader_ok;
        } else if snapshot.lock.holds_at(now) {
            terms.leader_ok = true;
            terms.primary_ok = !standby_cluster;
            terms.standby_leader_ok = standby_cluster && is(&[Role::Replica, Role::StandbyLeader]);
            terms.replica_ok = replica_ok && !standby_cluster;
        }
        terms
    }

    fn writable_ok(&self) -> bool {
        self.primary_ok || self.standby_leader_ok
    }

    /// This node's place in the synchronous set; a replica's only.
    fn sync_role(&self) -> Option<MemberRole> {
        let is_replica = self.postgres.is_some_and(|pg| pg.role == Role::Replica);
        is_replica.then(|| self.cluster.map(|cluster| cluster.role_of(self.name))).flatten()
    }
}

/// Whether a check on `path` succeeds.
pub fn check(snapshot: &Snapshot, path: &str, query: &Query, now: Mono) -> bool {
    let terms = Terms::new(snapshot, query, now);
    let path = if path == "/" { "/primary" } else { path };
    let has = |parts: &[&str]| parts.iter().any(|part| path.contains(part));
    if has(&["standby_leader", "standby-leader"]) {
        return terms.standby_leader_ok; // 1
    }
    if has(&["leader"]) {
        return terms.leader_ok; // 2
    }
    if has(&["master", "primary", "read-write"]) {
        return terms.primary_ok; // 3
    }
    let healthy = if has(&["replica"]) {
        terms.replica_ok // 4
    } else if has(&["read-only"]) && !has(&["sync", "quorum"]) {
        terms.writable_ok() || terms.replica_ok // 5
    } else if has(&["health"]) {
        terms.postgres.is_some_and(|pg| pg.state == PostgresState::Running) // 6
    } else {
        terms.cluster.is_some() && check_by_sync_role(&terms, path) // 7 to 10
    };
    healthy && tags_match(snapshot, query)
}

fn check_by_sync_role(terms: &Terms<'_>, path: &str) -> bool {
    let role = terms.sync_role();
    let sync = role == Some(MemberRole::SyncStandby);
    let quorum = role == Some(MemberRole::QuorumStandby);
    match path {
        "/sync" | "/synchronous" => sync && terms.replica_ok,
        "/quorum" => quorum && terms.replica_ok,
        "/async" | "/asynchronous" => !sync && !quorum && terms.replica_ok,
        "/read-only-sync" | "/read-only-synchronous" => terms.writable_ok() || (sync && terms.replica_ok),
        "/read-only-quorum" => terms.writable_ok() || (quorum && terms.replica_ok),
        _ => false,
    }
}

/// The view, unless it is older than the ttl.
pub fn young_view(snapshot: &Snapshot, now: Mono) -> Option<&ClusterStatus> {
    snapshot.cluster.as_ref().filter(|cluster| cluster.is_young(now, snapshot.lock.ttl))
}

fn is_true(tag: Option<&serde_json::Value>) -> bool {
    tag == Some(&serde_json::Value::Bool(true))
}

/// The primary's end of WAL as far as anybody here has heard; zero when nobody has.
fn newest_end(pg: &PostgresStatus, cluster: Option<&ClusterStatus>) -> Lsn {
    let heard = match pg.wal {
        WalPosition::Standby { latest_end, .. } => latest_end,
        WalPosition::Primary { .. } | WalPosition::Unknown => None,
    };
    cluster.and_then(|cluster| cluster.optime).max(heard).unwrap_or_default()
}

fn is_lagging(pg: &PostgresStatus, cluster: Option<&ClusterStatus>, query: &Query) -> bool {
    let Some(limit) = query.lag() else { return false };
    let replayed = match pg.wal {
        WalPosition::Standby { replayed, .. } => replayed,
        WalPosition::Primary { .. } | WalPosition::Unknown => Lsn(0),
    };
    replayed.0.saturating_add(limit) < newest_end(pg, cluster).0
}

/// Every `tag_<name>=<value>` must equal the node's tag; a tag that is no text compares as lower-case text.
fn tags_match(snapshot: &Snapshot, query: &Query) -> bool {
    query.tags().all(|(name, wanted)| match snapshot.tags.get(name) {
        None | Some(serde_json::Value::Null) => false,
        Some(serde_json::Value::String(text)) => text == wanted,
        Some(other) => other.to_string().to_lowercase() == wanted,
    })
}

/// `/liveness`: the loop turns. A running primary that stopped turning is worse than a replica that did.
pub fn is_live(snapshot: &Snapshot, now: Mono) -> bool {
    let running_primary =
        snapshot.postgres.as_ref().is_some_and(|pg| pg.role == Role::Primary && pg.state == PostgresState::Running);
    let grace = snapshot.lock.ttl * if running_primary { 1 } else { 2 };
    snapshot.is_paused() || now < snapshot.last_tick + snapshot.loop_wait + grace
}

/// `/readiness`: the leader, or a standby that streams and is close enough behind.
pub fn is_ready(snapshot: &Snapshot, query: &Query, now: Mono) -> bool {
    if snapshot.lock.holds_at(now) {
        return true;
    }
    let Some(pg) = &snapshot.postgres else { return false };
    let WalPosition::Standby { received, replayed, latest_end, .. } = pg.wal else { return false };
    if pg.state != PostgresState::Running || pg.replication_state != Some(ReplicationState::Streaming) {
        return false;
    }
    let cluster = young_view(snapshot, now);
    if cluster.is_none() && latest_end.is_none() {
        return snapshot.failsafe_active;
    }
    let position = if query.get("mode") == Some("write") { received } else { replayed };
    let default_limit = || {
        snapshot.cluster.as_ref().map(|cluster| cluster.settings.maximum_lag_on_failover).unwrap_or(ByteSize::mib(1)).0
    };
    newest_end(pg, cluster).ahead_of(position).0 <= query.lag().unwrap_or_else(default_limit)
}

#[cfg(test)]
mod tests;
