//! `top`: the cluster at a glance in a terminal, live.
//!
//! ```text
//! a second, or a key -> ask one node (/howdah, /timeline) -> Model -> draw -> terminal
//! ```
//! Looks, and changes nothing. Deliberately absent: operations; they have their commands, which ask first.

mod draw;
mod model;

use std::io::IsTerminal;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use self::model::{Model, Pane};
use super::args::TopArgs;
use super::client::{Client, Status};
use super::{Failure, Outcome, exit};
use crate::cluster::changes::ChangeRecord;
use crate::telemetry::clock;

/// Keys that may wait.
const KEYS: usize = 16;

/// `howdah top`
pub(super) async fn top(client: &Client, args: &TopArgs) -> Outcome {
    if !std::io::stdout().is_terminal() {
        return Err(Failure::new(exit::USAGE, "top needs a terminal; for programs there is `howdah list -f json`"));
    }
    // Whoever is not there is said before the screen is taken.
    client.status(args.cluster.as_deref()).await?;
    let mut keys = listen()?;
    let mut terminal =
        ratatui::try_init().map_err(|error| Failure::new(exit::FAILED, format!("use the terminal: {error}")))?;
    let outcome = run(client, args, &mut terminal, &mut keys).await;
    ratatui::restore();
    outcome
}

/// Reads keys on a thread of its own: waiting for one must not hold up anything.
fn listen() -> Outcome<mpsc::Receiver<Event>> {
    let (sender, receiver) = mpsc::channel(KEYS);
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || {
            while let Ok(event) = event::read() {
                if sender.blocking_send(event).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| Failure::new(exit::FAILED, format!("listen to the keyboard: {error}")))?;
    Ok(receiver)
}

async fn run(
    client: &Client,
    args: &TopArgs,
    terminal: &mut ratatui::DefaultTerminal,
    keys: &mut mpsc::Receiver<Event>,
) -> Outcome {
    let mut model = Model::default();
    let mut every = tokio::time::interval(Duration::from_secs(args.interval.into()));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let drawn = terminal.draw(|frame| draw::draw(frame, &model));
        drawn.map_err(|error| Failure::new(exit::FAILED, format!("draw: {error}")))?;
        tokio::select! {
            _ = every.tick() => {
                if !model.still {
                    look(client, &mut model).await;
                }
            }
            key = keys.recv() => match key {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
                        return Ok(());
                    }
                    match key.code {
                        KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                        KeyCode::Tab | KeyCode::Char('t') => model.pane = model.pane.next(),
                        KeyCode::Char('n') => {
                            model.next_node(client.addresses().len());
                            look(client, &mut model).await;
                        }
                        KeyCode::Char('p') | KeyCode::Char(' ') => model.still = !model.still,
                        KeyCode::Down | KeyCode::Char('j') => model.scroll = model.scroll.saturating_add(1),
                        KeyCode::Up | KeyCode::Char('k') => model.scroll = model.scroll.saturating_sub(1),
                        _ => (),
                    }
                }
                Some(_) => (),
                None => return Ok(()),
            },
        }
    }
}

/// Asks the chosen node; without a choice, whichever has a quorum.
async fn look(client: &Client, model: &mut Model) {
    let seen: Result<Status, String> = match model.node.and_then(|place| client.addresses().get(place)) {
        Some(address) => client.look(address).await.map_err(|why| format!("{address} {why}: press n for another node")),
        None => client.first_look().await.map_err(|failure| failure.to_string()),
    };
    match seen {
        Ok(status) => {
            let timeline = if model.pane == Pane::Timeline || model.timeline.is_empty() {
                client.read(&[], "/timeline").await.ok()
            } else {
                None
            };
            if let Some(entries) = timeline.and_then(|body| serde_json::from_value::<Vec<ChangeRecord>>(body).ok()) {
                model.timeline = entries;
            }
            model.trouble = None;
            model.status = Some(status);
        }
        Err(why) => model.trouble = Some(why),
    }
    model.at = clock::wall();
}
