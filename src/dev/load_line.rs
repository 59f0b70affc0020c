//! `howdah dev --load`: clients that write all the time, and one line that says what became of it.
//!
//! drill::Load through all routers -> every second: acknowledged, blocked, retried; every ten seconds also lost, by
//! counting what is there. A line is printed when it says something new: each ten seconds, and when writers block.

use std::time::Duration;

use super::layout::Layout;
use super::screen::Screen;
use crate::drill::{Counters, Door, Load, Plan, Proof};
use crate::telemetry::clock;
use crate::telemetry::redact::Secret;
use crate::types::Mono;

/// A quiet load says so this often.
const EVERY: Duration = Duration::from_secs(10);
/// Blocked writers are told of this often.
const BLOCKED_EVERY: Duration = Duration::from_secs(1);
/// Counting what is there may take so long; the terminal waits for it.
const COUNTING: Duration = Duration::from_secs(1);
/// Writers and their pause: about a hundred writes a second, which a laptop does not notice.
const PLAN: Plan = Plan { writers: 4, pause: Duration::from_millis(40), samples: false };

/// The clients and what was said of them.
pub struct LoadLine {
    load: Load,
    told: Mono,
    blocked: bool,
    since: Option<Mono>,
}

impl LoadLine {
    /// Starts the clients.
    ///
    /// # Errors
    /// When nobody takes a write.
    pub async fn start(layout: &Layout, password: &str) -> anyhow::Result<Self> {
        let routers: Vec<u16> = layout.file.nodes.iter().filter_map(|node| Some(node.router?.primary)).collect();
        let routed = !routers.is_empty();
        let ports = if routed { routers } else { layout.file.nodes.iter().map(|node| node.postgres).collect() };
        let door = Door {
            hosts: ports.into_iter().map(|port| ("127.0.0.1".to_owned(), port)).collect(),
            routed,
            user: "postgres".to_owned(),
            password: Some(Secret::new(password.to_owned())),
            database: "postgres".to_owned(),
            table: "howdah_load",
        };
        let load = Load::start(door, PLAN).await?;
        Ok(Self { load, told: clock::now(), blocked: false, since: None })
    }

    /// Looks, and says what is new.
    pub async fn look(&mut self, screen: &Screen, since_start: Duration) {
        let counters = self.load.counters();
        let now = clock::now();
        let blocked = 0 < counters.blocked;
        let every = if blocked { BLOCKED_EVERY } else { EVERY };
        if blocked == self.blocked && now.since(self.told) < every {
            return;
        }
        if blocked && self.since.is_none() {
            self.since = counters.last_ack;
        }
        // Counting asks the database: not while it does not answer.
        let counted = tokio::time::timeout(COUNTING, self.load.check());
        let proof = if blocked { None } else { counted.await.ok().and_then(Result::ok) };
        let span = self.since.filter(|_| blocked != self.blocked).map(|since| now.since(since));
        screen.say(&format!("{:6.1} s  load: {}", since_start.as_secs_f64(), words(&counters, proof, blocked, span)));
        if !blocked {
            self.since = None;
        }
        self.blocked = blocked;
        self.told = now;
    }

    /// Ends the clients and says what all of it came to.
    pub async fn stop(mut self, screen: &Screen) {
        self.load.stop().await;
        let limit = Duration::from_secs(5);
        let proof = tokio::time::timeout(limit, self.load.check()).await.ok().and_then(Result::ok);
        screen.say(&format!("load: {}", words(&self.load.counters(), proof, false, None)));
        // What cannot be dropped now is dropped by the next load.
        let _ = tokio::time::timeout(limit, self.load.tidy_up()).await;
    }
}

fn words(counters: &Counters, proof: Option<Proof>, blocked: bool, span: Option<Duration>) -> String {
    let lost = match proof {
        Some(proof) => format!("{} lost, {} duplicated", proof.lost, proof.duplicated),
        None => "lost: not counted now".to_owned(),
    };
    let state = match (blocked, span) {
        (true, _) => format!("{} writers blocked", counters.blocked),
        (false, Some(span)) => format!("writes again after {:.1} s", span.as_secs_f64()),
        (false, None) => "0 blocked".to_owned(),
    };
    format!("{} acknowledged, {lost}, {} retried, {state}", counters.acknowledged, counters.retried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_matters_now() {
        let counters = Counters { acknowledged: 412, retried: 3, blocked: 2, ..Counters::default() };
        let proof = Some(Proof { lost: 0, duplicated: 1 });
        assert_eq!(
            words(&counters, None, true, None),
            "412 acknowledged, lost: not counted now, 3 retried, 2 writers blocked"
        );
        assert_eq!(
            words(&counters, proof, false, Some(Duration::from_millis(4_800))),
            "412 acknowledged, 0 lost, 1 duplicated, 3 retried, writes again after 4.8 s"
        );
    }
}
