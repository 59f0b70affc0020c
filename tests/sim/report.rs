//! What a run did, for people: a line for each thing that happened, with every node's state in columns.

use howdah::ha::{PgStep, RecordStep, Step};

use crate::clock::{MS, SEC};
use crate::model_postgres::Proc;
use crate::world::World;

/// So many lines are kept.
const KEPT: usize = 50;

impl World {
    /// One line about a node, built only if somebody reads it.
    pub fn trace(&mut self, node: usize, text: impl FnOnce() -> String) {
        if self.tracing {
            let line = format!("{} {}", self.nodes[node].name, text());
            self.trace_text(line);
        }
    }

    pub fn trace_text(&mut self, text: String) {
        if !self.tracing {
            return;
        }
        let columns: String = (0..self.nodes.len()).map(|node| format!(" {:<13}|", self.column(node))).collect();
        let line = format!("{:>5}.{:03} |{columns} {text}", self.now / SEC, self.now % SEC / MS);
        if std::env::var_os("SIM_TRACE").is_some() {
            println!("{line}");
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// A node in a few letters: agent and guardian (small: stopped, dash: gone), server, timeline, position.
    fn column(&self, node: usize) -> String {
        let it = &self.nodes[node];
        if !it.power {
            return "off".to_owned();
        }
        let letter = |alive: bool, frozen: bool, letter: char| match (alive, frozen || it.suspended) {
            (false, _) => '-',
            (true, true) => letter.to_ascii_lowercase(),
            (true, false) => letter,
        };
        let agent = letter(it.agent.alive, it.agent.frozen, 'A');
        let guardian = letter(it.guardian.alive, it.guardian.frozen, 'G');
        let kind = if it.pg.recovery { 'S' } else { 'P' };
        let server = letter(it.pg.proc != Proc::Gone, it.pg.frozen, kind);
        match &it.disk.data {
            None => format!("{agent}{guardian}{server}"),
            Some(data) => format!("{agent}{guardian}{server} {}:{:x}", self.wal.timeline(data.tip.0), data.tip.1),
        }
    }
}

/// A step in a few words.
pub fn flat(step: &Step) -> String {
    match step {
        Step::Pg(PgStep::StartPrimary { permit }) => format!("start_primary in term {}", permit.term),
        Step::Pg(PgStep::Promote { permit, timeline }) => format!("promote to {timeline} in term {}", permit.term),
        Step::Pg(step) => format!("{step:?}"),
        Step::Record(RecordStep::HandOver { term, to, shutdown_lsn, .. }) => {
            format!("hand_over term {term} to {to} with {shutdown_lsn}")
        }
        Step::Record(step) => format!("{step:?}"),
        Step::Exit => "exit".to_owned(),
    }
}
