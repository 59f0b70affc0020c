//! A view of the cluster, built line by line, and what the core decides on it.
//!
//! ```text
//! cluster n1 n2 n3                 it exists; this node is n1, all are running replicas, nobody leads
//! new-cluster n1 n2                it does not exist yet; no data anywhere
//! leader n2 [term=100]             that one holds the leader key       leader none 2s    nobody, for 2 s
//! history 1=0/3000                 timeline 1 ended there: the cluster is on timeline 2
//! member n2 [state= role= timeline= nofailover=yes checkpoint=pending clonefrom=1 ...]    member n2 gone
//! reserved 5 [term=100]            the newest timeline number that a leadership was given
//! initialize none|running|8        optime 0/5000        request [from=n1] [to=n2] [due=no]    request none
//! handover from=n1 to=n2 at=0/5000             damaged leader "why"    record fresh|stale 6s|unknown "why"
//!
//! primary at=0/5000 [timeline=1] [term=100]    this node runs, leads, and has a permit for 3 s
//! standby at=0/5000 [timeline=1] [of=n2] [outside=yes] [streaming=no] [replaying=yes]    this node runs as a standby
//! stopped clean|crashed|clean-standby|crashed-standby [at= reached= timeline= signal=yes exit=crash]
//! data empty | foreign "why" | incomplete "why" | unreadable "why" | of 8
//! process absent|crashed|standby|writable|stopping|unknown     server silent 3s | unknown "why"
//! permit 3s [term=100] | over | none           guardian-permit ..., from an agent before this one
//! remember restart=asked|stopped   remember new-copy=asked|forced|moved
//! streams n2 at=0/5000 [catching-up=yes counted=yes]    streams nobody
//! sync n2 n3 [leader=n1 quorum=1 copies=1]      the record of the synchronous set      sync none
//! names "ANY 1 (n2)" [for=2s]       synchronous_standby_names in force; every process goes by it after 1 s
//! checkpoint at=0/5000             where the last one began
//! peer n2 [at= timeline= writable=yes promotable=no pending=yes receiving=yes]    peer n2 silent    peer n2 late
//! task initdb|basebackup|rewind [from=n2] | none         set pause=yes nofailover=yes sync=quorum strict=yes ...
//! remember stopped=1s ...          what the node has kept in mind, as "so long ago" or a number
//! stop-node                        the node is asked to stop           after 2s    time passes
//! decide                           prints the action, why, when to look again, and the steps
//! why-not n3                       prints each rule that keeps it from leading
//! what-if n2 [voters="n1,n2"]     prints what would happen if it died now
//! ```
//!
//! Positions are `0/5000`, spans `150ms` or `3s`. Whatever is left out stays as it was.

use std::error::Error as StdError;
use std::time::Duration;

use howdah::cluster::ClusterRecord;
use howdah::cluster::record::Versioned;
use howdah::cluster::records::{
    Degraded, FailoverRecord, HandoverRecord, HistoryLine, Initialize, MemberRecord, ReservedTimeline, StatusRecord,
    SyncRecord,
};
use howdah::ha::sync_wish;
use howdah::ha::view::{
    Attempts, ByHand, ClusterView, ControlState, ControlView, DataDirView, InForce, Memory, PeerView, ProcessView,
    ServerView, Settings, StandbyView, SyncMode, Synchronous, TaskKind, TaskView, UpstreamTag,
};
use howdah::ha::what_if::Voter;
use howdah::types::{Fact, LeaderPermit, LeaseId, Lsn, Mono, NodeName, SystemId, Term, TimelineId, WalBytes, WallTime};

use crate::show;
use crate::words::{Words, lsn, node, span, yes};

/// The database of every story, unless it says otherwise.
const DATABASE: SystemId = SystemId(7);

/// How well the record is known.
enum Known {
    Fresh,
    Stale(Duration),
    Unknown(String),
}

pub struct Story {
    view: ClusterView,
    record: ClusterRecord,
    known: Known,
}

pub fn settings() -> Settings {
    Settings {
        ttl: Duration::from_secs(5),
        loop_wait: Duration::from_secs(1),
        maximum_lag_on_failover: WalBytes(1 << 20),
        primary_start_timeout: Duration::from_secs(300),
        pause: false,
        use_pg_rewind: true,
        nofailover: false,
        failover_priority: 1,
        upstream: UpstreamTag::Leader,
        pre_promote: false,
        standby_cluster: None,
        synchronous: Synchronous { mode: SyncMode::Off, strict: false, node_count: 1, maximum_lag: None },
    }
}

pub fn versioned<T>(value: T, revision: i64) -> Versioned<T> {
    Versioned { value, create_revision: revision, mod_revision: revision, lease: LeaseId(1) }
}

/// The members that a text of `synchronous_standby_names` names.
fn sync_names(text: &str) -> std::collections::BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_owned).collect()
}

fn control(state: ControlState, standby_signal: bool) -> ControlView {
    ControlView {
        system_id: DATABASE,
        state,
        timeline: TimelineId(1),
        checkpoint: Lsn(0x1000),
        min_recovery_end: Lsn(0),
        standby_signal,
    }
}

impl Story {
    pub fn new() -> Self {
        let view = ClusterView {
            now: Mono(1_000_000_000_000),
            me: node("n1"),
            settings: settings(),
            record: Fact::unknown("the story has not begun"),
            request_due: true,
            data_dir: DataDirView::Empty,
            process: ProcessView::Absent { crashed: false },
            server: Fact::unknown("PostgreSQL does not run"),
            permit: None,
            guardian_permit: None,
            peers: std::collections::BTreeMap::new(),
            task: None,
            shutting_down: false,
            memory: Memory::default(),
        };
        Self { view, record: ClusterRecord::default(), known: Known::Fresh }
    }

    fn ago(&self, text: &str) -> Mono {
        self.view.now.minus(span(text))
    }

    fn cluster(&mut self, words: &mut Words, exists: bool) {
        *self = Self::new();
        self.record.revision = 100;
        let (state, role, timeline) =
            if exists { ("running", "replica", Some(TimelineId(1))) } else { ("stopped", "uninitialized", None) };
        let mut first = None;
        while let Some(name) = words.next() {
            let member = MemberRecord { state: state.into(), role: role.into(), timeline, ..MemberRecord::default() };
            self.record.members.insert(node(&name), versioned(member, 10));
            first = first.or(Some(node(&name)));
        }
        self.view.me = first.expect("a cluster has members");
        if exists {
            self.record.initialize = Some(versioned(Initialize::Done(DATABASE), 5));
            self.view.data_dir = DataDirView::Present(control(ControlState::InRecovery, true));
        }
    }

    fn leader(&mut self, name: &NodeName, term: i64) {
        for (other, member) in &mut self.record.members {
            let role = if other == name { "primary" } else { "replica" };
            member.value.role = role.into();
        }
        let timeline = self.record.timeline();
        if let Some(member) = self.record.members.get_mut(name) {
            member.value.timeline = Some(timeline);
        }
        self.record.leader = Some(versioned(name.clone(), term));
        self.view.memory.leaderless_since = None;
    }

    fn present(&mut self) -> &mut ControlView {
        if !matches!(self.view.data_dir, DataDirView::Present(_)) {
            self.view.data_dir = DataDirView::Present(control(ControlState::ShutDown, false));
        }
        match &mut self.view.data_dir {
            DataDirView::Present(control) => control,
            _ => unreachable!("it was set above"),
        }
    }

    fn record_line(&mut self, name: &str, words: &mut Words) -> bool {
        match name {
            "cluster" => self.cluster(words, true),
            "new-cluster" => self.cluster(words, false),
            "leader" => match words.word().as_str() {
                "none" => {
                    self.record.leader = None;
                    self.view.memory.leaderless_since = Some(self.ago(&words.word()));
                }
                name => self.leader(&node(name), words.number("term").unwrap_or(100)),
            },
            "history" => {
                self.record.history = words
                    .rest()
                    .into_iter()
                    .map(|(timeline, at)| {
                        let (why, none) = ("no recovery target specified".to_owned(), String::new());
                        HistoryLine(timeline.parse().unwrap(), lsn(&at), why, none.clone(), none)
                    })
                    .collect();
                if let Some(leader) = self.record.leader.clone() {
                    self.leader(&leader.value, leader.create_revision);
                }
            }
            "reserved" => {
                let number = |words: &mut Words| TimelineId(words.word().parse().unwrap());
                let (timeline, reached) = (number(words), self.record.timeline());
                let revision = words.number("term").unwrap_or(90);
                self.record.reserved = Some(versioned(ReservedTimeline { timeline, reached }, revision));
            }
            "member" => self.member(words),
            "initialize" => {
                self.record.initialize = match words.word().as_str() {
                    "none" => None,
                    "running" => Some(versioned(Initialize::Running, 5)),
                    id => Some(versioned(Initialize::Done(id.parse().unwrap()), 5)),
                }
            }
            "optime" => {
                self.record.status =
                    Some(versioned(StatusRecord { optime: lsn(&words.word()), ..StatusRecord::default() }, 60));
            }
            "request" => {
                let none = words.next().is_some_and(|word| word == "none");
                let request =
                    FailoverRecord { leader: words.node("from"), member: words.node("to"), scheduled_at: None };
                self.view.request_due = words.yes("due").unwrap_or(true);
                self.record.failover = (!none).then(|| versioned(request, 77));
            }
            "sync" => self.sync(words),
            "handover" => {
                let handover = HandoverRecord {
                    from: words.node("from").unwrap(),
                    to: words.node("to").unwrap(),
                    shutdown_lsn: words.lsn("at").unwrap(),
                    ended_term: 90,
                    at: WallTime(0),
                    why: "switchover".into(),
                };
                self.record.handover = Some(versioned(handover, 95));
            }
            "damaged" => {
                let key = format!("/service/demo/{}", words.word());
                self.record.damaged.insert(key, words.word());
            }
            "record" => {
                self.known = match words.word().as_str() {
                    "fresh" => Known::Fresh,
                    "stale" => Known::Stale(span(&words.word())),
                    "unknown" => Known::Unknown(words.word()),
                    other => panic!("a record is not {other:?}"),
                }
            }
            _ => return false,
        }
        true
    }

    fn sync(&mut self, words: &mut Words) {
        let mut record = SyncRecord::default();
        while let Some(name) = words.next() {
            if name == "none" {
                (self.record.sync, self.record.sync_revision) = (None, 0);
                return;
            }
            record.sync_standby.insert(node(&name));
        }
        record.leader = words.node("leader");
        record.quorum = words.number("quorum").map(|quorum| u32::try_from(quorum).unwrap());
        record.degraded = words.number("copies").map(|copies| Degraded {
            copies: u32::try_from(copies).unwrap(),
            wanted: 2,
            since: Some(WallTime(0)),
        });
        (self.record.sync, self.record.sync_revision) = (Some(record), 88);
    }

    /// What PostgreSQL enforces, and since when it has been seen.
    fn names(&mut self, words: &mut Words) {
        let text = words.word();
        let rule = sync_names(&text);
        let since = words.named("for").map_or(self.view.now, |span| self.ago(&span));
        let Fact::Fresh(server) = &mut self.view.server else { panic!("PostgreSQL must run to enforce anything") };
        for (name, standby) in &mut server.standbys {
            standby.counted = rule.contains(name.as_str());
        }
        server.synchronous_standby_names = text.clone();
        let seen = Lsn(0x1000);
        self.view.memory.commit_rule = Some(InForce { names: text, since, seen, from: None });
    }

    fn member(&mut self, words: &mut Words) {
        let name = node(&words.word());
        if words.next().is_some_and(|word| word == "gone") {
            self.record.members.remove(&name);
            return;
        }
        let timeline = Some(TimelineId(1));
        let member = &mut self
            .record
            .members
            .entry(name)
            .or_insert_with(|| versioned(MemberRecord { timeline, ..MemberRecord::default() }, 10))
            .value;
        if let Some(state) = words.named("state") {
            member.state = state;
        }
        if let Some(role) = words.named("role") {
            member.role = role;
        }
        if let Some(timeline) = words.timeline() {
            member.timeline = Some(timeline);
        }
        if let Some(position) = words.lsn("at") {
            member.xlog_location = Some(position);
            member.replication_state = (member.role == "replica").then(|| "streaming".to_owned());
        }
        if let Some(nofailover) = words.yes("nofailover") {
            member.tags.insert("nofailover".into(), nofailover.into());
        }
        for tag in ["nosync", "sync_priority", "failover_priority", "replicatefrom", "clonefrom"] {
            if let Some(value) = words.named(tag) {
                let number = value.parse::<i64>();
                member.tags.insert(tag.into(), number.map_or_else(|_| value.clone().into(), Into::into));
            }
        }
        if words.named("checkpoint").is_some_and(|word| word == "pending") {
            member.checkpoint_after_promote = Some(false);
        }
    }

    fn local_line(&mut self, name: &str, words: &mut Words) -> bool {
        match name {
            "primary" => {
                let term = words.number("term").unwrap_or(100);
                self.leader(&self.view.me.clone(), term);
                self.run(words, true);
                self.view.permit =
                    Some(LeaderPermit { term: Term(term), valid_until: self.view.now + Duration::from_secs(3) });
            }
            "standby" => self.run(words, false),
            "stopped" => self.stopped(words),
            "data" => match words.word().as_str() {
                "empty" => self.view.data_dir = DataDirView::Empty,
                "foreign" => self.view.data_dir = DataDirView::Foreign { why: words.word() },
                "incomplete" => self.view.data_dir = DataDirView::Incomplete { why: words.word() },
                "unreadable" => self.view.data_dir = DataDirView::Unreadable { why: words.word() },
                "of" => self.present().system_id = words.word().parse().unwrap(),
                other => panic!("data is not {other:?}"),
            },
            "process" => {
                self.view.process = match words.word().as_str() {
                    "absent" => ProcessView::Absent { crashed: false },
                    "crashed" => ProcessView::Absent { crashed: true },
                    "standby" => ProcessView::Running { writable: false },
                    "writable" => ProcessView::Running { writable: true },
                    "stopping" => ProcessView::Stopping,
                    "unknown" => ProcessView::Unknown,
                    other => panic!("a process is not {other:?}"),
                }
            }
            "server" => match words.word().as_str() {
                "silent" => {
                    let value = self.view.server.any().expect("it has answered before").clone();
                    self.view.server = Fact::Stale { value, age: span(&words.word()) };
                }
                "unknown" => self.view.server = Fact::unknown(words.word()),
                other => panic!("a server is not {other:?}"),
            },
            "streams" => self.streams(words),
            "names" => self.names(words),
            "checkpoint" => {
                let Fact::Fresh(server) = &mut self.view.server else { panic!("PostgreSQL must run for that") };
                server.checkpoint_redo = words.lsn("at").unwrap();
            }
            "permit" => self.view.permit = self.permit(words),
            "guardian-permit" => self.view.guardian_permit = self.permit(words),
            "task" => {
                let kind = match words.word().as_str() {
                    "none" => None,
                    "initdb" => Some(TaskKind::Initdb),
                    "basebackup" => Some(TaskKind::BaseBackup),
                    "rewind" => Some(TaskKind::Rewind),
                    other => panic!("a task is not {other:?}"),
                };
                let (from, since) = (words.node("from"), self.view.now);
                self.view.task = kind.map(|kind| TaskView { kind, from, since });
            }
            "stop-node" => self.view.shutting_down = true,
            _ => return false,
        }
        true
    }

    fn permit(&self, words: &mut Words) -> Option<LeaderPermit> {
        let term = Term(words.number("term").unwrap_or(100));
        match words.word().as_str() {
            "none" => None,
            "over" => Some(LeaderPermit { term, valid_until: self.view.now }),
            left => Some(LeaderPermit { term, valid_until: self.view.now + span(left) }),
        }
    }

    fn run(&mut self, words: &mut Words, writable: bool) {
        let timeline = words.timeline().unwrap_or(TimelineId(1));
        let position = words.lsn("at").expect("it has a position");
        let follows = words.node("of");
        let follows_outside = words.yes("outside").unwrap_or(false);
        let streaming = words.yes("streaming").unwrap_or(follows.is_some() || follows_outside);
        let replaying = words.yes("replaying").unwrap_or(false);
        let server = ServerView {
            in_recovery: !writable,
            timeline,
            position,
            replaying,
            streaming,
            receiving: streaming,
            follows,
            follows_outside,
            standbys: std::collections::BTreeMap::new(),
            synchronous_standby_names: String::new(),
            checkpoint_redo: Lsn(0x1008),
        };
        self.view.server = Fact::Fresh(server);
        self.view.process = ProcessView::Running { writable };
        let control = self.present();
        control.state = if writable { ControlState::InProduction } else { ControlState::InRecovery };
        control.standby_signal = !writable;
        control.timeline = timeline;
    }

    fn stopped(&mut self, words: &mut Words) {
        let (state, signal) = match words.word().as_str() {
            "clean" => (ControlState::ShutDown, false),
            "crashed" => (ControlState::InProduction, false),
            "clean-standby" => (ControlState::ShutDownInRecovery, true),
            "crashed-standby" => (ControlState::InRecovery, true),
            other => panic!("stopped data is not {other:?}"),
        };
        let crashed = words.named("exit").is_some_and(|word| word == "crash");
        self.view.process = ProcessView::Absent { crashed };
        self.view.server = Fact::unknown("PostgreSQL does not run");
        let control = self.present();
        control.state = state;
        control.standby_signal = words.yes("signal").unwrap_or(signal);
        control.timeline = words.timeline().unwrap_or(control.timeline);
        control.checkpoint = words.lsn("at").unwrap_or(control.checkpoint);
        control.min_recovery_end = words.lsn("reached").unwrap_or(Lsn(0));
    }

    fn streams(&mut self, words: &mut Words) {
        let Fact::Fresh(server) = &mut self.view.server else { panic!("PostgreSQL must run to be streamed from") };
        match words.word().as_str() {
            "nobody" => server.standbys.clear(),
            name => {
                let flushed = words.lsn("at").expect("it has a position");
                let streaming = !words.yes("catching-up").unwrap_or(false);
                let counted = words.yes("counted");
                let counted = counted.unwrap_or(sync_names(&server.synchronous_standby_names).contains(name));
                server.standbys.insert(node(name), StandbyView { streaming, flushed, counted });
            }
        }
    }

    fn peer(&mut self, words: &mut Words) {
        let name = node(&words.word());
        let answer = PeerView {
            writable: words.yes("writable").unwrap_or(false),
            promotable: words.yes("promotable").unwrap_or(true),
            timeline: Some(words.timeline().unwrap_or(TimelineId(1))),
            position: words.lsn("at"),
            pending: words.yes("pending").unwrap_or(false),
            receiving: words.yes("receiving").unwrap_or(false),
        };
        let fact = match words.next().as_deref() {
            None => Fact::Fresh(answer),
            Some("silent") => Fact::unknown("connection refused"),
            Some("late") => Fact::Stale { value: answer, age: Duration::from_secs(1) },
            Some(other) => panic!("a peer is not {other:?}"),
        };
        self.view.peers.insert(name, fact);
    }

    fn set(&mut self, words: &mut Words) {
        for (key, value) in words.rest() {
            let settings = &mut self.view.settings;
            match key.as_str() {
                "pause" => settings.pause = yes(&value),
                "nofailover" => settings.nofailover = yes(&value),
                "priority" => settings.failover_priority = value.parse().unwrap(),
                "replicatefrom" => settings.upstream = UpstreamTag::Member(node(&value)),
                "nostream" => settings.upstream = if yes(&value) { UpstreamTag::Archive } else { UpstreamTag::Leader },
                "pre-promote" => settings.pre_promote = yes(&value),
                "outside" => settings.standby_cluster = (value != "none").then(|| value.clone()),
                "rewind" => settings.use_pg_rewind = yes(&value),
                "lag" => settings.maximum_lag_on_failover = WalBytes(value.parse().unwrap()),
                "ttl" => settings.ttl = span(&value),
                "sync" => {
                    settings.synchronous.mode = match value.as_str() {
                        "off" => SyncMode::Off,
                        "on" => SyncMode::On,
                        "quorum" => SyncMode::Quorum,
                        other => panic!("there is no mode {other:?}"),
                    }
                }
                "strict" => settings.synchronous.strict = yes(&value),
                "node-count" => settings.synchronous.node_count = value.parse().unwrap(),
                "sync-lag" => settings.synchronous.maximum_lag = Some(WalBytes(value.parse().unwrap())),
                "start-timeout" => settings.primary_start_timeout = span(&value),
                other => panic!("there is no setting {other:?}"),
            }
        }
    }

    fn remember(&mut self, words: &mut Words) {
        for (key, value) in words.rest() {
            let ago = || self.view.now.minus(span(&value));
            let attempts = || match value.split_once('@') {
                Some((count, last)) => Attempts { count: count.parse().unwrap(), last: self.ago(last) },
                None => panic!("attempts are written 3@500ms: three, the last 500 ms ago"),
            };
            let mut memory = self.view.memory.clone();
            match key.as_str() {
                "stopped" => memory.stopped_for_handover = Some(ago()),
                "wal" => memory.wal_advanced_at = Some(ago()),
                "catching-up" => memory.catching_up_since = Some(ago()),
                "starting" => memory.starting_since = Some(ago()),
                "slots" => memory.slots_to_copy = vec![value.clone()],
                "pre-promoted" => memory.pre_promoted = Some(Term(value.parse().unwrap())),
                "pre-promote-failed" => memory.pre_promote_failed = Some(ago()),
                "checkpointed" => memory.checkpointed_for = Some(value.parse().unwrap()),
                "ending" => memory.ending_term = Some(Term(value.parse().unwrap())),
                "rewind-failed" => memory.rewind_failed = Some(value.clone()),
                "from" => memory.commit_rule.as_mut().expect("names are in force").from = Some(lsn(&value)),
                "standby-starts" => memory.standby_starts = attempts(),
                "failed-tasks" => memory.failed_tasks = attempts(),
                "unmanaged" => memory.unmanaged = value == "yes",
                "ahead" => memory.ahead_since = Some(ago()),
                "stops-to-rewind" => memory.stops_to_rewind = value.parse().unwrap(),
                "restart" => memory.by_hand = Some(ByHand::Restart { stopped: value == "stopped" }),
                "new-copy" => {
                    let (force, moved, from_leader) = (value == "forced", value == "moved", value == "from-leader");
                    memory.by_hand = Some(ByHand::Reinitialize { force, from_leader, moved });
                }
                "starts" => {
                    let Attempts { count, last } = attempts();
                    memory.crash_restarts = vec![last; count as usize];
                }
                other => panic!("nothing is remembered as {other:?}"),
            }
            self.view.memory = memory;
        }
    }

    fn decide(&mut self) -> String {
        show::decision(self.look())
    }

    fn what_if(&mut self, words: &mut Words) -> String {
        let victim = node(&words.word());
        let voters: Vec<Voter> = match words.named("voters") {
            Some(names) => names.split(',').map(|name| Voter { name: node(name), up: Some(true) }).collect(),
            None => self.record.members.keys().map(|name| Voter { name: name.clone(), up: Some(true) }).collect(),
        };
        show::forecast(self.look(), &voters, &victim)
    }

    fn look(&mut self) -> &ClusterView {
        // As the observer does after each look.
        if let Fact::Fresh(server) = &self.view.server {
            sync_wish::remember(&mut self.view.memory, &self.record, server, self.view.now);
        }
        self.view.record = match &self.known {
            Known::Fresh => Fact::Fresh(self.record.clone()),
            Known::Stale(age) => Fact::Stale { value: self.record.clone(), age: *age },
            Known::Unknown(why) => Fact::unknown(why.clone()),
        };
        &self.view
    }
}

impl goldenscript::Runner for Story {
    fn run(&mut self, command: &goldenscript::Command) -> Result<String, Box<dyn StdError>> {
        let mut words = Words::of(command);
        let mut text = String::new();
        let name = command.name.as_str();
        if !self.record_line(name, &mut words) && !self.local_line(name, &mut words) {
            match name {
                "peer" => self.peer(&mut words),
                "set" => self.set(&mut words),
                "remember" => self.remember(&mut words),
                "after" => self.view.now = self.view.now + span(&words.word()),
                "decide" => text = self.decide(),
                "why-not" => {
                    let name = node(&words.word());
                    text = show::obstacles(self.look(), &name);
                }
                "what-if" => text = self.what_if(&mut words),
                other => return Err(format!("nobody understands {other:?}").into()),
            }
        }
        words.finish();
        Ok(text)
    }
}
