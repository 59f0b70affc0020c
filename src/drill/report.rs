//! The result of a drill as one page that needs nothing else: for mail, tickets and auditors.

use std::fmt::Write as _;

use super::outcome::{Outcome, change_line};

/// Size of the plot.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 220.0;
const MARGIN: f64 = 36.0;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;\
color:#1b2430;background:#fff}h1{font-size:1.4rem}table{border-collapse:collapse}td,th{text-align:left;\
padding:.25rem 1rem .25rem 0;border-bottom:1px solid #d5dae0;vertical-align:top}svg{width:100%;height:auto}\
.bar{fill:#2f6fab}.axis{stroke:#8793a0}.fault{stroke:#b3261e;stroke-dasharray:4 3}text{fill:#56616d;font-size:12px}\
.good{color:#19703a}.bad{color:#b3261e}@media(prefers-color-scheme:dark){body{color:#e4e8ec;background:#14181d}\
td,th{border-color:#333b45}.bar{fill:#6ea8dc}text{fill:#9aa5b1}.good{color:#7bd19a}.bad{color:#ff8a80}\
.fault{stroke:#ff8a80}}";

/// The page.
pub fn page(outcome: &Outcome) -> String {
    let title = format!("{} of {}, {}", outcome.kind, outcome.cluster, outcome.at.iso());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{0}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escaped(&title)
    );
    let (kind, verdict) = match outcome.lost {
        0 => {
            ("good", format!("No acknowledged write was lost. Nobody could write for {} ms.", outcome.write_outage_ms))
        }
        lost => ("bad", format!("{lost} acknowledged writes were lost.")),
    };
    let _ = writeln!(page, "<p class=\"{kind}\"><strong>{verdict}</strong></p>");
    page.push_str(&plot(outcome));
    let refused = outcome.refused_connections.map_or("not through routers".to_owned(), |count| count.to_string());
    let healthy = outcome.healthy_after_ms.map_or("not within the drill".to_owned(), |ms| format!("{ms} ms"));
    let rows = [
        ("Primary", format!("{} before, {} after", outcome.old, outcome.new)),
        ("No acknowledged write for", format!("{} ms", outcome.write_outage_ms)),
        ("No answered read for", format!("{} ms", outcome.read_outage_ms)),
        ("Acknowledged writes", outcome.acknowledged.to_string()),
        ("Lost", outcome.lost.to_string()),
        ("Duplicated", outcome.duplicated.to_string()),
        ("Retried", outcome.retried.to_string()),
        ("Refused connections", refused),
        (
            "A write took",
            format!("{:.1} ms (median), {:.1} ms (longest)", outcome.latency_ms[0], outcome.latency_ms[1]),
        ),
        ("All nodes well after", healthy),
    ];
    page.push_str("<table>\n");
    for (name, value) in rows {
        let _ = writeln!(page, "<tr><th>{name}</th><td>{}</td></tr>", escaped(&value));
    }
    page.push_str("</table>\n<h2>What happened</h2>\n<ul>\n");
    for change in &outcome.changes {
        let _ = writeln!(page, "<li>{}</li>", escaped(&change_line(change)));
    }
    page.push_str("</ul>\n</body></html>\n");
    page
}

/// Acknowledged writes over time, as bars; the fault is a dashed line at zero.
fn plot(outcome: &Outcome) -> String {
    let most = f64::from(outcome.plot.iter().copied().max().unwrap_or(1).max(1));
    let bins = f64::from(u32::try_from(outcome.plot.len().max(1)).unwrap_or(u32::MAX));
    let step = (WIDTH - MARGIN) / bins;
    let floor = HEIGHT - MARGIN;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"acknowledged writes in each {} ms\">\n",
        outcome.bin_ms
    );
    let mut x = MARGIN;
    for count in &outcome.plot {
        let height = f64::from(*count) / most * (floor - 10.0);
        if 0 < *count {
            let _ = writeln!(
                svg,
                "<rect class=\"bar\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                floor - height,
                (step * 0.9).max(0.5)
            );
        }
        x += step;
    }
    let _ = writeln!(
        svg,
        "<line class=\"axis\" x1=\"{MARGIN}\" y1=\"{floor}\" x2=\"{WIDTH}\" y2=\"{floor}\"/>\
         <text x=\"0\" y=\"14\">{most}</text><text x=\"0\" y=\"{floor}\">0</text>"
    );
    let width_ms = bins * outcome.bin_ms as f64;
    let place = |ms: f64| MARGIN + (ms - outcome.plot_from_ms as f64) / width_ms * (WIDTH - MARGIN);
    let zero = place(0.0);
    let _ = writeln!(svg, "<line class=\"fault\" x1=\"{zero:.1}\" y1=\"0\" x2=\"{zero:.1}\" y2=\"{floor}\"/>");
    // A mark each second, or so that at most a dozen fit.
    let seconds = (width_ms / 1000.0 / 12.0).ceil().max(1.0);
    let mut at = 0.0;
    while at * 1000.0 < width_ms + outcome.plot_from_ms as f64 {
        let x = place(at * 1000.0);
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\">{at} s</text>", floor + 18.0);
        at += seconds;
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::load::{Counters, Proof};
    use crate::drill::outcome::Measured;
    use crate::types::Mono;

    #[test]
    fn the_page_needs_nothing_else_and_trusts_no_name() {
        let measured = Measured {
            fault: Mono(5_000_000_000),
            end: Mono(9_000_000_000),
            acks: Vec::new(),
            reads: Vec::new(),
            counters: Counters::default(),
            proof: Proof { lost: 3, duplicated: 0 },
        };
        let mut outcome = Outcome::of("kill-node", &measured);
        outcome.old = "<script>alert(1)</script>".to_owned();
        let page = page(&outcome);
        assert!(page.contains("3 acknowledged writes were lost") && page.contains("&lt;script&gt;"), "{page}");
        for absent in ["<script", "http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(absent), "{absent}");
        }
        assert!(page.contains("<svg") && page.contains("class=\"fault\"") && page.trim_end().ends_with("</html>"));
    }
}
