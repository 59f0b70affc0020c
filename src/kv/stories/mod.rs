//! Runs the stories under `tests/scripts/kv`: requests in, answers out, as text.
//!
//! ```text
//!   put a 1 lease=7            get a..c rev=3 limit=2            del a..c prev=yes
//!   > txn if version a = 0 then put a 1 , get a else ( if then del a else )
//! ```
//!
//! A range is `a` (one key), `a..c`, or `a..` (no end). A tag `[events]` shows the changes too.
//! Regenerate with `UPDATE_GOLDENFILES=1 cargo test --lib stories`, then read every line of the difference.

mod format;
mod parse;
mod show;

use std::error::Error as StdError;

use super::command::Command;
use super::watch::{Delivery, WatchId, Watchers};
use super::{Applied, State};
use crate::types::LeaseId;
use parse::Clause;
use show::Page;

/// A store and one stream of watchers, driven line by line.
struct Story {
    state: State,
    watchers: Watchers,
    /// Whether applied changes reach the watchers.
    connected: bool,
}

impl Story {
    fn new() -> Self {
        let state = State::new();
        Self { watchers: Watchers::new(&state), state, connected: true }
    }

    fn apply(&mut self, command: &Command, show_events: bool, page: &mut Page) {
        self.state.check(command).err().inspect(|error| {
            // What cannot be proposed is refused by apply with the same words.
            assert_eq!(self.state.apply(command), Applied { response: Err(error.clone()), events: Vec::new() });
        });
        let applied = self.state.apply(command);
        page.response(&applied.response);
        if show_events {
            applied.events.iter().for_each(|event| page.event(event));
        }
        if self.connected {
            for (id, batch) in self.watchers.on_applied(&applied) {
                page.batch(id, &batch);
            }
        }
    }

    fn line(&mut self, mut words: Clause, show_events: bool, page: &mut Page) {
        match words.name.as_str() {
            "get" => page.answer(self.state.range(&words.range_request()), Page::range),
            "read-txn" => match self.state.read_txn(&words.txn()) {
                None => page.line("not only reads"),
                Some(answer) => page.answer(answer, |page, response| page.txn(&response)),
            },
            "check" => {
                let command = words.rest_as_command();
                page.answer(self.state.check(&command), |page, ()| page.line("may be proposed"));
            }
            "lease" => match self.state.lease(LeaseId(words.number())) {
                Some(lease) => page.lease(lease),
                None => page.line("no such lease"),
            },
            "leases" => {
                self.state.leases().for_each(|(id, ttl_ms)| page.line(format!("lease {} ttl {ttl_ms} ms", id.0)));
            }
            "history" => {
                let (from, (key, range_end)) = (words.number(), words.range());
                page.answer(self.state.events_since(from, &key, &range_end, 1000), |page, batches| {
                    batches.iter().flatten().for_each(|event| page.event(event));
                });
            }
            "hash" => page.answer(self.state.hash_kv(words.number()), |page, (hash, compact, at)| {
                page.line(format!("hash {hash:08x}, compacted at {compact}, as of {at}"));
            }),
            "restart" => {
                let restored = State::from_bytes(&self.state.to_bytes()).unwrap();
                assert_eq!(restored, self.state, "a snapshot brings everything back");
                self.state = restored;
            }
            "watch" | "cancel" | "catch-up" | "progress" | "positions" | "cut" | "resync" | "fall-behind" => {
                self.watch_line(&mut words, page);
            }
            _ => self.apply(&words.command(), show_events, page),
        }
        words.finish();
    }

    fn watch_line(&mut self, words: &mut Clause, page: &mut Page) {
        match words.name.as_str() {
            "watch" => match self.watchers.create(&self.state, words.watch_request()) {
                Ok(created) => page.line(format!("watcher {} created at {}", created.id.0, created.revision)),
                Err(error) => page.line(format!("not created: {error}")),
            },
            "cancel" => match self.watchers.cancel(WatchId(words.number())) {
                true => page.line("canceled"),
                false => page.line("no such watcher"),
            },
            "catch-up" => {
                let limit = words.option_number("limit").unwrap_or(1000);
                for (id, delivery) in self.watchers.catch_up(&self.state, limit as usize) {
                    match delivery {
                        Delivery::Events(batch) => page.batch(id, &batch),
                        Delivery::Compacted { compact_revision } => {
                            page.line(format!("watcher {} canceled, compacted at {compact_revision}", id.0));
                        }
                    }
                }
            }
            "progress" => match self.watchers.progress() {
                Some(revision) => page.line(format!("progress {revision}")),
                None => page.line("silence"),
            },
            "positions" => {
                for id in self.watchers.ids() {
                    let position = self.watchers.position(id).unwrap();
                    page.line(format!("watcher {} {position:?}, tells {:?}", id.0, self.watchers.progress_of(id)));
                }
            }
            "fall-behind" => self.watchers.fall_behind(WatchId(words.number()), words.number()),
            "cut" => self.connected = false,
            _ => {
                self.connected = true;
                self.watchers.resync(&self.state);
            }
        }
    }
}

impl goldenscript::Runner for Story {
    fn run(&mut self, command: &goldenscript::Command) -> Result<String, Box<dyn StdError>> {
        let mut line = vec![command.name.clone()];
        if command.args.is_empty() && command.name.contains(' ') {
            line = command.name.split_whitespace().map(str::to_owned).collect();
        }
        for arg in &command.args {
            line.push(match &arg.key {
                Some(key) => format!("{key}={}", arg.value),
                None => arg.value.clone(),
            });
        }
        let mut page = Page::default();
        self.line(Clause::all(line), command.tags.contains("events"), &mut page);
        Ok(page.into_text())
    }
}

macro_rules! stories {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let path = format!("{}/tests/scripts/kv/{}.txt", env!("CARGO_MANIFEST_DIR"), stringify!($name));
                goldenscript::run(&mut Story::new(), path).unwrap();
            }
        )*

        /// A story that nobody runs proves nothing.
        #[test]
        fn every_story_is_run() {
            let dir = format!("{}/tests/scripts/kv", env!("CARGO_MANIFEST_DIR"));
            let mut there: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            there.sort();
            let mut run = vec![$(concat!(stringify!($name), ".txt"),)* "command_format.txt"];
            run.sort();
            assert_eq!(there, run);
        }
    };
}

stories! {
    a_fresh_store_answers_as_etcd_does
    a_lease_takes_its_keys_with_it
    a_put_can_keep_the_value_or_the_lease
    a_read_only_transaction_needs_no_log_entry
    a_transaction_is_all_or_nothing
    a_transaction_may_not_write_a_key_twice
    a_watcher_in_the_future_waits
    a_watcher_that_falls_behind_catches_up
    comparisons_look_at_the_state_before
    compaction_forgets_the_past_but_not_the_present
    progress_is_told_only_when_nothing_is_behind
    ranges_filter_sort_and_limit
    watchers_see_every_change_once_and_in_order
}
