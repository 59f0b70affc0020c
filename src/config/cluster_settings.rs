//! The settings that all members share: `bootstrap.dcs` at first, the store's `config` key from then on.
//!
//! ```text
//! JSON (patchable, as the operator wrote it) -> parse -> ClusterSettings (typed, checked) -> the decision core
//! ```
//! Nothing is clamped: a value out of range is an error that names its rule, and the settings in force stay.
//! Deliberately absent: where the JSON is kept and who may change it (`cluster/`, `api/`).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::keys::{CLUSTER_KEYS, KeyTable};
use super::raw;
use super::reader::{Problem, Reader};
use crate::types::ByteSize;

/// The shared settings, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterSettings {
    /// How long a leadership lasts without renewal.
    pub ttl: Duration,
    /// The heartbeat of the loop.
    pub loop_wait: Duration,
    /// How long a failing store or PostgreSQL operation is retried.
    pub retry_timeout: Duration,
    /// A standby that is further behind than this does not take part in a failover.
    pub maximum_lag_on_failover: ByteSize,
    /// A synchronous standby that is further behind is replaced; none = never.
    pub maximum_lag_on_syncnode: Option<ByteSize>,
    /// Whether a candidate must be on the cluster's newest timeline.
    pub check_timeline: bool,
    /// How many history rows are kept; none = all.
    pub max_timelines_history: Option<u32>,
    /// How long a crashed primary may take to come back before another one takes over; zero = at once.
    pub primary_start_timeout: Duration,
    /// How long a stop may take in the synchronous modes before it is forced; none = no limit.
    pub primary_stop_timeout: Option<Duration>,
    /// Who must confirm a commit.
    pub synchronous_mode: SynchronousMode,
    /// Whether commits wait when no synchronous standby is left.
    pub synchronous_mode_strict: bool,
    /// How many standbys must confirm.
    pub synchronous_node_count: u32,
    /// Whether a primary that lost the store goes on while every member agrees.
    pub failsafe_mode: bool,
    /// Hands off.
    pub pause: bool,
    /// How long the slot of a vanished member is kept; zero = not at all.
    pub member_slots_ttl: Duration,
    /// Permanent replication slots by name.
    pub slots: BTreeMap<String, PermanentSlot>,
    /// Slots that are none of our business.
    pub ignore_slots: Vec<SlotPattern>,
    /// The primary outside that this whole cluster follows.
    pub standby_cluster: Option<StandbyCluster>,
    /// What all PostgreSQL servers of the cluster share.
    pub postgresql: SharedPostgresql,
}

/// Who must confirm a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SynchronousMode {
    /// Nobody but the primary.
    Off,
    /// Named standbys, all of them.
    On,
    /// Any quorum of the standbys.
    Quorum,
}

/// A replication slot that is kept whatever the members are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PermanentSlot {
    /// Streams WAL.
    Physical {
        /// `primary` or `standby`: where it exists; none = in both kinds of cluster.
        cluster_type: Option<String>,
    },
    /// Streams changes.
    Logical {
        /// The database.
        database: String,
        /// The output plugin.
        plugin: String,
    },
}

/// Which foreign slots to leave alone: all given properties must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotPattern {
    /// The slot's name.
    pub name: Option<String>,
    /// `physical` or `logical`.
    pub kind: Option<String>,
    /// The database.
    pub database: Option<String>,
    /// The output plugin.
    pub plugin: Option<String>,
}

/// The primary outside that a standby cluster follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StandbyCluster {
    /// Host or comma-separated hosts.
    pub host: Option<String>,
    /// Port, 5432 when absent.
    pub port: Option<u16>,
    /// The slot to use there. It must exist.
    pub primary_slot_name: Option<String>,
    /// Fetches WAL from an archive.
    pub restore_command: Option<String>,
    /// Told which WAL nobody needs any more.
    pub archive_cleanup_command: Option<String>,
    /// How far the leader stays behind, as PostgreSQL writes it.
    pub recovery_min_apply_delay: Option<String>,
}

/// What all PostgreSQL servers of the cluster share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedPostgresql {
    /// Whether a diverged server is rewound rather than rebuilt.
    pub use_pg_rewind: bool,
    /// Whether members stream through replication slots.
    pub use_slots: bool,
    /// Server settings by name, values as `postgresql.conf` has them.
    pub parameters: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf`; none = leave the file alone.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of `pg_ident.conf`; none = leave the file alone.
    pub pg_ident: Option<Vec<String>>,
    /// `restore_command` and its like.
    pub recovery: BTreeMap<String, String>,
}

/// Shared settings that were refused. Nothing of them is in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct InvalidSettings {
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

impl fmt::Display for InvalidSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("; "))
    }
}

/// A ttl, and what it is made of, is no longer than this.
const LONGEST: Duration = Duration::from_secs(86400);

/// A ttl beyond this is honoured with a warning about what it costs.
const TTL_WARNING: Duration = Duration::from_secs(10);

impl Default for ClusterSettings {
    fn default() -> Self {
        Self::parse(&json!({})).map(|(settings, _)| settings).expect("the defaults in the key table are valid, by test")
    }
}

impl ClusterSettings {
    /// Reads settings; absent keys get their defaults. Also returns warnings, each a sentence.
    ///
    /// # Errors
    /// Every problem at once, each naming its key and rule. The caller keeps the settings that it had.
    pub fn parse(json: &Value) -> Result<(Self, Vec<String>), InvalidSettings> {
        let mut reader = Reader::new(json, KeyTable(CLUSTER_KEYS), "");
        raw::recognise(&mut reader);
        let settings = Self::read(&mut reader);
        let (problems, warnings) = reader.finish();
        if problems.is_empty() { Ok((settings, warnings)) } else { Err(InvalidSettings { problems }) }
    }

    /// Reads and checks settings through a reader that collects the problems.
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let settings = Self {
            ttl: reader.duration("ttl"),
            loop_wait: reader.duration("loop_wait"),
            retry_timeout: reader.duration("retry_timeout"),
            maximum_lag_on_failover: reader.size("maximum_lag_on_failover"),
            maximum_lag_on_syncnode: reader.optional_size("maximum_lag_on_syncnode"),
            check_timeline: reader.flag("check_timeline"),
            max_timelines_history: Some(reader.integer("max_timelines_history")).filter(|count| *count != 0),
            primary_start_timeout: reader.aliased_duration("primary_start_timeout", "master_start_timeout"),
            primary_stop_timeout: Some(reader.aliased_duration("primary_stop_timeout", "master_stop_timeout"))
                .filter(|span| !span.is_zero()),
            synchronous_mode: read_synchronous_mode(reader),
            synchronous_mode_strict: reader.flag("synchronous_mode_strict"),
            synchronous_node_count: reader.integer("synchronous_node_count"),
            failsafe_mode: reader.flag("failsafe_mode"),
            pause: reader.flag("pause"),
            member_slots_ttl: reader.duration("member_slots_ttl"),
            slots: read_slots(reader),
            ignore_slots: read_slot_patterns(reader),
            standby_cluster: read_standby_cluster(reader),
            postgresql: SharedPostgresql {
                use_pg_rewind: reader.flag("postgresql.use_pg_rewind"),
                use_slots: reader.flag("postgresql.use_slots"),
                parameters: reader.text_map("postgresql.parameters"),
                pg_hba: reader.optional_text_list("postgresql.pg_hba"),
                pg_ident: reader.optional_text_list("postgresql.pg_ident"),
                recovery: reader.text_map("postgresql.recovery_conf"),
            },
        };
        settings.check_rules(reader);
        settings
    }

    fn check_rules(&self, reader: &mut Reader<'_>) {
        let (ttl, wait, retry) = (self.ttl, self.loop_wait, self.retry_timeout);
        let needed = wait + 2 * retry;
        if ttl < needed {
            let cause = format!(
                "loop_wait + 2*retry_timeout <= ttl (rule C1) does not hold: {} + 2*{} = {} is more than {}; raise ttl or lower the others",
                seconds(wait),
                seconds(retry),
                seconds(needed),
                seconds(ttl)
            );
            reader.problem("ttl", cause);
        }
        let minima = [
            ("ttl", ttl, Duration::from_secs(1), "C2"),
            ("loop_wait", wait, Duration::from_millis(100), "C3"),
            ("retry_timeout", retry, Duration::from_millis(200), "C4"),
        ];
        for (key, value, minimum, rule) in minima {
            if value < minimum {
                let least = seconds(minimum);
                reader.problem(key, format!("{key} >= {least} (rule {rule}) does not hold: it is {}", seconds(value)));
            }
        }
        for (key, value, _, _) in minima {
            if LONGEST < value {
                let text = format!(
                    "{key} <= {} (rule C7) does not hold: it is {}; a leader that dies would be succeeded after that time, which is as never",
                    seconds(LONGEST),
                    seconds(value)
                );
                reader.problem(key, text);
            }
        }
        if self.synchronous_node_count == 0 {
            reader.problem(
                "synchronous_node_count",
                "it must be at least 1 (rule C5); turn synchronous_mode off instead",
            );
        }
        let logical = self.slots.iter().find(|(_, slot)| matches!(slot, PermanentSlot::Logical { .. }));
        if let Some((name, _)) = logical
            && self.postgresql.parameters.get("wal_level").is_none_or(|level| level != "logical")
        {
            reader.problem(
                &format!("slots.{name}"),
                "a logical slot needs wal_level: logical under postgresql.parameters (rule C6); without it PostgreSQL would not even start",
            );
        }
        self.check_durability(reader);
        if self.failsafe_mode {
            reader.warning(
                "failsafe_mode",
                "has no effect: the store is on the members themselves, and where all of them can be reached there is a majority",
            );
        }
        if self.standby_cluster.is_some() && self.synchronous_mode != SynchronousMode::Off {
            reader.warning("synchronous_mode", "has no effect while standby_cluster is set");
        }
        if TTL_WARNING < ttl && ttl <= LONGEST {
            reader.warning(
                "ttl",
                format!(
                    "{} is honoured, but host loss then costs up to {} instead of 6 s; lower ttl to 5, loop_wait to 1 and retry_timeout to 2 unless your network needs more",
                    seconds(ttl),
                    seconds(ttl + Duration::from_secs(1))
                ),
            );
        }
    }

    /// Parameters that would take back what the other settings promise.
    fn check_durability(&self, reader: &mut Reader<'_>) {
        let switched_off = |name: &str| {
            let value = self.postgresql.parameters.get(name)?;
            let text = value.trim().trim_matches('\'').to_ascii_lowercase();
            matches!(text.as_str(), "off" | "local" | "false" | "no" | "0" | "f" | "n").then_some(value)
        };
        if let Some(value) =
            switched_off("synchronous_commit").filter(|_| self.synchronous_mode != SynchronousMode::Off)
        {
            let why = format!(
                "{value} would acknowledge commits that no standby has, whatever synchronous_mode promises (rule C8); lower it for the roles or sessions whose commits may be lost (ALTER ROLE ... SET synchronous_commit), or turn synchronous_mode off"
            );
            reader.problem("postgresql.parameters.synchronous_commit", why);
        }
        for name in ["fsync", "full_page_writes"] {
            if let Some(value) = switched_off(name) {
                let why = format!("{value}: a crash of the machine can destroy the data, acknowledged or not");
                reader.warning(&format!("postgresql.parameters.{name}"), why);
            }
        }
    }

    /// The settings with all defaults spelled out, in the form of the store's `config` key. Absent options are omitted.
    pub fn to_json(&self) -> Value {
        let bytes = |size: Option<ByteSize>| size.map_or(json!(-1), |size| json!(size.0));
        let mut postgresql = Map::new();
        postgresql.insert("use_pg_rewind".into(), json!(self.postgresql.use_pg_rewind));
        postgresql.insert("use_slots".into(), json!(self.postgresql.use_slots));
        postgresql.insert("parameters".into(), json!(self.postgresql.parameters));
        for (key, lines) in [("pg_hba", &self.postgresql.pg_hba), ("pg_ident", &self.postgresql.pg_ident)] {
            if let Some(lines) = lines {
                postgresql.insert(key.into(), json!(lines));
            }
        }
        if !self.postgresql.recovery.is_empty() {
            postgresql.insert("recovery_conf".into(), json!(self.postgresql.recovery));
        }
        let mut all = json!({
            "ttl": number(self.ttl),
            "loop_wait": number(self.loop_wait),
            "retry_timeout": number(self.retry_timeout),
            "maximum_lag_on_failover": self.maximum_lag_on_failover.0,
            "maximum_lag_on_syncnode": bytes(self.maximum_lag_on_syncnode),
            "check_timeline": self.check_timeline,
            "max_timelines_history": self.max_timelines_history.unwrap_or(0),
            "primary_start_timeout": number(self.primary_start_timeout),
            "primary_stop_timeout": number(self.primary_stop_timeout.unwrap_or_default()),
            "synchronous_mode": self.synchronous_mode,
            "synchronous_mode_strict": self.synchronous_mode_strict,
            "synchronous_node_count": self.synchronous_node_count,
            "failsafe_mode": self.failsafe_mode,
            "pause": self.pause,
            "member_slots_ttl": number(self.member_slots_ttl),
            "postgresql": postgresql,
        });
        if !self.slots.is_empty() {
            let slots: Map<_, _> = self.slots.iter().map(|(name, slot)| (name.clone(), slot.to_json())).collect();
            all["slots"] = Value::Object(slots);
        }
        if !self.ignore_slots.is_empty() {
            all["ignore_slots"] = self.ignore_slots.iter().map(SlotPattern::to_json).collect();
        }
        if let Some(remote) = &self.standby_cluster {
            all["standby_cluster"] = remote.to_json();
        }
        all
    }
}

impl Serialize for ClusterSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ClusterSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Value::deserialize(deserializer)?;
        Self::parse(&json).map(|(settings, _)| settings).map_err(serde::de::Error::custom)
    }
}

impl PermanentSlot {
    fn to_json(&self) -> Value {
        match self {
            Self::Physical { cluster_type: None } => json!({"type": "physical"}),
            Self::Physical { cluster_type: Some(kind) } => json!({"type": "physical", "cluster_type": kind}),
            Self::Logical { database, plugin } => json!({"type": "logical", "database": database, "plugin": plugin}),
        }
    }
}

impl SlotPattern {
    fn to_json(&self) -> Value {
        let Self { name, kind, database, plugin } = self;
        only_some([("name", name), ("type", kind), ("database", database), ("plugin", plugin)])
    }
}

impl StandbyCluster {
    /// The primary outside, in words.
    pub fn address(&self) -> String {
        match &self.host {
            Some(host) => format!("{host}:{}", self.port.unwrap_or(5432)),
            None => "the archive".to_owned(),
        }
    }

    fn to_json(&self) -> Value {
        let Self { host, port, primary_slot_name, restore_command, archive_cleanup_command, recovery_min_apply_delay } =
            self;
        let mut all = only_some([
            ("host", host),
            ("primary_slot_name", primary_slot_name),
            ("restore_command", restore_command),
            ("archive_cleanup_command", archive_cleanup_command),
            ("recovery_min_apply_delay", recovery_min_apply_delay),
        ]);
        if let Some(port) = port {
            all["port"] = json!(port);
        }
        all
    }
}

fn only_some<const N: usize>(fields: [(&str, &Option<String>); N]) -> Value {
    fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value.as_ref()?)))).collect()
}

/// Seconds as a JSON number: whole when whole, as Patroni's peers expect.
fn number(span: Duration) -> Value {
    if span.subsec_nanos() == 0 { json!(span.as_secs()) } else { json!(span.as_secs_f64()) }
}

/// Seconds for people.
fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs_f64())
}

/// Patroni writes `true`, `on` and `off` as well as `quorum`; YAML 1.1 readers make booleans of two of them.
fn read_synchronous_mode(reader: &mut Reader<'_>) -> SynchronousMode {
    match reader.word("synchronous_mode").as_str() {
        "on" | "true" | "yes" => SynchronousMode::On,
        "quorum" => SynchronousMode::Quorum,
        _ => SynchronousMode::Off,
    }
}

fn text_of(map: &Map<String, Value>, key: &str) -> Option<String> {
    match map.get(key)? {
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        other => Some(other.to_string()),
    }
}

fn read_slots(reader: &mut Reader<'_>) -> BTreeMap<String, PermanentSlot> {
    let mut slots = BTreeMap::new();
    let mut all = serde_json::Map::new();
    for key in ["permanent_replication_slots", "permanent_slots", "slots"] {
        all.extend(reader.map(key));
    }
    for (name, value) in all {
        let path = format!("slots.{name}");
        let fields = value.as_object().cloned().unwrap_or_default();
        let named = |key: &str| text_of(&fields, key);
        let usable = !name.is_empty()
            && name.len() < 64
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !usable {
            reader.problem(&path, "a slot's name has 1 to 63 lower-case letters, digits and '_'; rename it");
        }
        let kind =
            named("type").unwrap_or_else(|| if fields.contains_key("plugin") { "logical" } else { "physical" }.into());
        let slot = match (kind.as_str(), named("database"), named("plugin")) {
            ("physical", _, _) => PermanentSlot::Physical { cluster_type: named("cluster_type") },
            ("logical", Some(database), Some(plugin)) => PermanentSlot::Logical { database, plugin },
            ("logical", _, _) => {
                reader.problem(&path, "a logical slot needs database and plugin; add them");
                continue;
            }
            (other, _, _) => {
                reader.problem(&path, format!("type {other:?} is neither physical nor logical; write one of them"));
                continue;
            }
        };
        slots.insert(name, slot);
    }
    slots
}

fn read_slot_patterns(reader: &mut Reader<'_>) -> Vec<SlotPattern> {
    let mut patterns = Vec::new();
    for (index, value) in reader.list("ignore_slots").into_iter().enumerate() {
        match &value {
            Value::Object(fields) if !fields.is_empty() => patterns.push(SlotPattern {
                name: text_of(fields, "name"),
                kind: text_of(fields, "type"),
                database: text_of(fields, "database"),
                plugin: text_of(fields, "plugin"),
            }),
            _ => reader.problem(
                &format!("ignore_slots[{index}]"),
                "an entry is a map with at least one of name, type, database, plugin; an empty one would match all slots",
            ),
        }
    }
    patterns
}

fn read_standby_cluster(reader: &mut Reader<'_>) -> Option<StandbyCluster> {
    let section = reader.map("standby_cluster");
    if section.is_empty() {
        return None;
    }
    let remote = StandbyCluster {
        host: reader.optional_text("standby_cluster.host"),
        port: reader.optional_port("standby_cluster.port"),
        primary_slot_name: reader.optional_text("standby_cluster.primary_slot_name"),
        restore_command: reader.optional_text("standby_cluster.restore_command"),
        archive_cleanup_command: reader.optional_text("standby_cluster.archive_cleanup_command"),
        recovery_min_apply_delay: reader.optional_text("standby_cluster.recovery_min_apply_delay"),
    };
    if remote.host.is_none() && remote.restore_command.is_none() {
        reader.problem("standby_cluster", "names no source; give host and port, or restore_command");
    }
    Some(remote)
}

/// Applies a partial change as Patroni's PATCH does: maps merge, null removes, everything else replaces.
///
/// Source: reference section 1.5, `PATCH /config`.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(fields) = target else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(fields.remove(key)),
            Value::Object(_) => merge_patch(fields.entry(key.clone()).or_insert(json!({})), value),
            other => drop(fields.insert(key.clone(), other.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(json: Value) -> Vec<String> {
        ClusterSettings::parse(&json).expect_err("bad").problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let settings = ClusterSettings::default();
        assert_eq!(settings.ttl, Duration::from_secs(5));
        assert_eq!(settings.loop_wait, Duration::from_secs(1));
        assert_eq!(settings.retry_timeout, Duration::from_secs(2));
        assert_eq!(settings.maximum_lag_on_failover, ByteSize::mib(1));
        assert_eq!(settings.maximum_lag_on_syncnode, None);
        assert_eq!(settings.primary_start_timeout, Duration::from_secs(300));
        assert_eq!(settings.member_slots_ttl, Duration::from_secs(1800));
        assert!(settings.postgresql.use_slots);
    }

    #[test]
    fn json_form_round_trips() {
        let json = json!({
            "ttl": 8, "loop_wait": 0.5, "retry_timeout": "500ms", "synchronous_mode": "quorum",
            "maximum_lag_on_syncnode": "1MB", "primary_stop_timeout": 7,
            "slots": {"a": {"type": "physical"}, "b": {"database": "app", "plugin": "pgoutput"}},
            "ignore_slots": [{"name": "x", "type": "logical"}],
            "standby_cluster": {"host": "10.0.0.9", "port": 5432},
            "postgresql": {"parameters": {"max_connections": 200, "wal_level": "logical", "hot_standby": "on", "fsync": true}, "pg_hba": ["local all all trust"]},
        });
        let (settings, _) = ClusterSettings::parse(&json).expect("valid");
        assert_eq!(settings.postgresql.parameters["max_connections"], "200");
        assert_eq!(settings.postgresql.parameters["fsync"], "on");
        assert_eq!(settings.loop_wait, Duration::from_millis(500));
        let (again, _) = ClusterSettings::parse(&settings.to_json()).expect("valid");
        assert_eq!(again, settings);
    }

    #[test]
    fn a_lease_that_never_ends_is_refused() {
        let day = json!({"ttl": 86400, "loop_wait": 28800, "retry_timeout": 28800});
        assert!(ClusterSettings::parse(&day).is_ok());
        let found = problems(json!({"ttl": 99_999_999_999_999_u64}));
        let said = "ttl: ttl <= 86400 s (rule C7) does not hold: it is 99999999999999 s; a leader that dies would be succeeded after that time, which is as never";
        assert_eq!(found, [said]);
        let most = 99_999;
        let found = problems(json!({"ttl": most, "loop_wait": most, "retry_timeout": most}));
        assert_eq!(found.iter().filter(|problem| problem.contains("(rule C7)")).count(), 3, "{found:#?}");
    }

    #[test]
    fn patroni_values_cost_a_warning() {
        let (settings, warnings) =
            ClusterSettings::parse(&json!({"ttl": 30, "loop_wait": 10, "retry_timeout": 10})).expect("valid");
        assert_eq!(settings.ttl, Duration::from_secs(30));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("host loss then costs up to 31 s instead of 6 s"), "{warnings:?}");
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let found = problems(json!({"ttl": 4, "loop_wait": "soon", "ttll": 3, "slots": {"S": {"type": "odd"}}}));
        assert_eq!(found.len(), 5, "{found:#?}");
        assert!(found.iter().any(|p| p.starts_with("ttl: loop_wait + 2*retry_timeout <= ttl (rule C1)")), "{found:#?}");
        assert!(found.iter().any(|p| p == "ttll: unknown key; did you mean ttl?"), "{found:#?}");
    }

    #[test]
    fn what_would_take_back_a_promise_is_refused_or_named() {
        let lowered = |mode: &str, value: Value| json!({"synchronous_mode": mode, "postgresql": {"parameters": {"synchronous_commit": value}}});
        for value in [json!("off"), json!("local"), json!(false), json!("'OFF'")] {
            let found = problems(lowered("quorum", value));
            assert!(found[0].starts_with("postgresql.parameters.synchronous_commit: "), "{found:#?}");
        }
        ClusterSettings::parse(&lowered("quorum", json!("remote_apply"))).expect("stronger than asked for");
        ClusterSettings::parse(&lowered("off", json!("local"))).expect("nothing is promised");
        let unsafe_writes = json!({"postgresql": {"parameters": {"fsync": "off", "full_page_writes": false}}});
        let (_, warnings) = ClusterSettings::parse(&unsafe_writes).expect("a person's choice");
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn patch_merges_and_prunes() {
        let mut target = json!({"ttl": 5, "postgresql": {"parameters": {"a": 1, "b": 2}}});
        merge_patch(
            &mut target,
            &json!({"ttl": null, "pause": true, "postgresql": {"parameters": {"a": null, "c": "3"}}}),
        );
        assert_eq!(target, json!({"pause": true, "postgresql": {"parameters": {"b": 2, "c": "3"}}}));
    }
}
