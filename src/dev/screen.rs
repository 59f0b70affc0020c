//! Prints for the person at the terminal: one line per thing that happened, coloured by node.
//!
//! The only place of `dev` that writes to standard output. A closed terminal is no error here: the
//! cluster goes on, and is stopped by its signal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Colours by the node's place in the cluster; ANSI codes.
const COLOURS: [&str; 5] = ["36", "33", "35", "32", "34"];

/// Where lines go, and how they look.
#[derive(Debug, Clone)]
pub struct Screen {
    names: Vec<String>,
    coloured: bool,
}

impl Screen {
    /// Standard output; with colours when it is a terminal and `NO_COLOR` is not set.
    pub fn new(names: Vec<String>) -> Self {
        let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { names, coloured }
    }

    /// A line about the whole cluster.
    pub fn say(&self, text: &str) {
        print_line(text);
    }

    /// A line about one node, with the time since the start.
    pub fn node(&self, since_start: Duration, name: &str, text: &str) {
        print_line(&self.node_line(since_start, name, text));
    }

    fn node_line(&self, since_start: Duration, name: &str, text: &str) -> String {
        let time = format!("{:6.1} s", since_start.as_secs_f64());
        let colour = self.names.iter().position(|known| known == name).and_then(|place| COLOURS.get(place));
        match colour {
            Some(colour) if self.coloured => format!("{time}  \x1b[{colour}m{name}\x1b[0m  {text}"),
            _ => format!("{time}  {name}  {text}"),
        }
    }
}

/// Prints one line on standard output.
pub fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_only_for_terminals() {
        let mut screen = Screen { names: vec!["n1".to_owned(), "n2".to_owned()], coloured: false };
        let span = Duration::from_millis(1_240);
        assert_eq!(screen.node_line(span, "n2", "is primary"), "   1.2 s  n2  is primary");
        screen.coloured = true;
        assert_eq!(screen.node_line(span, "n2", "is primary"), "   1.2 s  \x1b[33mn2\x1b[0m  is primary");
        assert_eq!(screen.node_line(span, "n9", "x"), "   1.2 s  n9  x");
    }
}
