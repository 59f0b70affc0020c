//! Puts the model on the screen: sensible at 80x24, and no worse than cut off on less.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table};

use super::model::{Model, Mood};

/// The keys, always in sight.
const KEYS: [(&str, &str); 5] = [
    ("q", "quit"),
    ("Tab", "decisions/timeline"),
    ("n", "next node"),
    ("p", "hold still"),
    ("\u{2191}\u{2193}", "scroll"),
];

fn style(mood: Mood) -> Style {
    // The terminal's own colours: they fit its light or dark.
    match mood {
        Mood::Good => Style::new().fg(Color::Green),
        Mood::Warn => Style::new().fg(Color::Yellow),
        Mood::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

fn rows(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let members = model.members();
    let facts = model.facts();
    let [title, verdict, table, below, pane, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(rows(members.len()).saturating_add(3).min(12)),
        Constraint::Length(rows(facts.len())),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let still = if model.still { "  HELD STILL" } else { "" };
    frame.render_widget(
        Line::from(vec![Span::styled(model.title(), bold), Span::styled(still, style(Mood::Warn))]),
        title,
    );
    let (text, mood) = model.verdict();
    frame.render_widget(Line::styled(text, style(mood)), verdict);

    let head = Row::new(["Member", "Role", "State", "TL", "Receive lag", "Replay lag"]).style(bold);
    let lines = members.into_iter().map(|row| Row::new(row.cells).style(style(row.mood)));
    let widths = [
        Constraint::Min(10),
        Constraint::Length(15),
        Constraint::Length(19),
        Constraint::Length(4),
        Constraint::Length(11),
        Constraint::Length(11),
    ];
    frame.render_widget(Table::new(lines, widths).header(head).block(Block::bordered().title(" Members ")), table);

    let facts: Vec<Line<'_>> = facts
        .into_iter()
        .map(|(name, text)| Line::from(vec![Span::styled(format!("{name:<7}"), bold), Span::raw(text)]))
        .collect();
    frame.render_widget(Paragraph::new(facts), below);

    let lines = model.lines();
    let height = usize::from(pane.height.saturating_sub(2));
    let first = model.scroll.min(lines.len().saturating_sub(height));
    let shown: Vec<Line<'_>> = lines.into_iter().skip(first).take(height).map(Line::raw).collect();
    frame.render_widget(Paragraph::new(shown).block(Block::bordered().title(model.pane_title())), pane);

    let mut line = Vec::new();
    for (key, what) in KEYS {
        line.push(Span::styled(key, bold.add_modifier(Modifier::REVERSED)));
        line.push(Span::raw(format!(" {what}  ")));
    }
    frame.render_widget(Line::from(line), keys);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::client::Status;
    use crate::cli::top::model::Pane;
    use crate::types::WallTime;

    fn model() -> Model {
        let snapshot =
            serde_json::from_str(include_str!("../../../tests/surface/three_nodes.json")).expect("a snapshot");
        let timeline = serde_json::from_str(include_str!("../../../tests/surface/timeline.json")).expect("entries");
        let status =
            Status { snapshot, view_age_seconds: Some(0.1), permit_remaining_seconds: Some(3.25), router: None };
        Model { status: Some(status), timeline, at: WallTime(1_795_377_600_000), ..Model::default() }
    }

    fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, model)).expect("drawn");
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn a_terminal_of_the_usual_size_has_all_of_it() {
        let lines = screen(&model(), 80, 24);
        let wanted =
            ["howdah main, seen by n2, 20:00:00 UTC", "Writes go to n1, term 4200. n3 is in archive recovery."];
        assert_eq!(lines[..2], wanted, "{lines:#?}");
        assert!(lines[3].contains("Member") && lines[3].contains("Replay lag"), "{lines:#?}");
        assert!(lines[4].contains("n1") && lines[4].contains("Leader") && lines[4].contains("running"), "{lines:#?}");
        assert!(
            lines[5].contains("n2 *") && lines[5].contains("Sync Standby") && lines[5].contains("384 B"),
            "{lines:#?}"
        );
        assert!(lines[6].contains("30.0 MB"), "{lines:#?}");
        let facts = [
            "Copies on the primary and each of n2",
            "Lease  5 s; permit 3.2 s left",
            "Store  n3 leads, 3 voters, term 7, log 900",
        ];
        assert_eq!(lines[8..11], facts, "{lines:#?}");
        assert!(lines[11].contains("Decisions of n2") && lines[12].contains("hold: n2 follows n1"), "{lines:#?}");
        assert!(lines[23].starts_with("q quit  Tab decisions/timeline  n next node"), "{lines:#?}");
    }

    #[test]
    fn the_timeline_is_one_key_away_and_scrolls() {
        let mut model = model();
        model.pane = model.pane.next();
        assert_eq!(model.pane, Pane::Timeline);
        let lines = screen(&model, 80, 24);
        assert!(lines[12].contains("rejoin n3 in 900 ms, lost 256 bytes given up"), "{lines:#?}");
        assert!(lines[13].contains("failover n1 in 4782 ms, lost nothing"), "{lines:#?}");
        model.scroll = 99;
        let lines = screen(&model, 80, 15);
        assert!(lines[12].contains("failover n1"), "the last one stays in sight: {lines:#?}");
    }

    #[test]
    fn silence_is_said_and_small_screens_do_no_harm() {
        let mut model = model();
        model.trouble = Some("no node answers".to_owned());
        assert_eq!(screen(&model, 80, 24)[1], "no node answers");
        for (width, height) in [(1, 1), (20, 5), (40, 10), (200, 60)] {
            screen(&model, width, height);
            screen(&Model::default(), width, height);
        }
        model.next_node(2);
        model.next_node(2);
        assert_eq!(model.node, Some(1));
        model.next_node(2);
        assert_eq!(model.node, None);
    }
}
