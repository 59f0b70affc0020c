//! Tables: for people as patronictl draws them, and as JSON, YAML or TSV.
//!
//! Deliberately absent: what is in them.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::args::Format;

/// One column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<'a> {
    /// Its heading in a pretty table.
    pub(super) title: &'a str,
    /// Its name in the other formats.
    pub(super) key: &'a str,
    /// Whether numbers stand at its right edge.
    pub(super) right: bool,
}

impl<'a> Column<'a> {
    /// A column of text.
    pub(super) const fn left(title: &'a str) -> Self {
        Self { title, key: title, right: false }
    }

    /// A column of numbers.
    pub(super) const fn right(title: &'a str) -> Self {
        Self { title, key: title, right: true }
    }
}

/// One cell; null is an empty one.
pub(super) type Cell = Value;

/// A table.
#[derive(Debug, Default)]
pub(super) struct Table<'a> {
    /// Stands in the upper edge; empty = none.
    pub(super) title: String,
    /// The columns.
    pub(super) columns: Vec<Column<'a>>,
    /// As many cells as columns each.
    pub(super) rows: Vec<Vec<Cell>>,
    /// This many first columns stand in the title of a pretty table, and are left out of it.
    pub(super) in_title: usize,
}

impl Table<'_> {
    /// The table as text, without a line end at its end.
    pub(super) fn render(&self, format: Format) -> String {
        match format {
            Format::Pretty => self.pretty(),
            Format::Json => serde_json::to_string(&self.records()).unwrap_or_default(),
            Format::Yaml => serde_yaml_ng::to_string(&self.records()).unwrap_or_default(),
            Format::Tsv => self.delimited("\t"),
        }
    }

    fn records(&self) -> Vec<Record<'_>> {
        self.rows.iter().map(|row| Record { columns: &self.columns, row }).collect()
    }

    /// Lines with `delimiter` between the values, in which it does not occur.
    pub(super) fn delimited(&self, delimiter: &str) -> String {
        let heading: Vec<&str> = self.columns.iter().map(|column| column.key).collect();
        let mut lines = vec![heading.join(delimiter)];
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().map(|cell| flow(cell).replace('\n', " ").replace(delimiter, " ")).collect();
            lines.push(cells.join(delimiter));
        }
        lines.join("\n")
    }

    fn pretty(&self) -> String {
        let columns = self.columns.get(self.in_title..).unwrap_or_default();
        let rows: Vec<Vec<Vec<String>>> = self
            .rows
            .iter()
            .map(|row| row.get(self.in_title..).unwrap_or_default().iter().map(block).collect())
            .collect();
        let width = |index: usize| {
            let cells = rows.iter().filter_map(|row| row.get(index)).flatten().map(|line| line.chars().count());
            cells.chain([columns[index].title.chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        let dashes: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
        let rule = format!("+{}+", dashes.join("+"));
        let line = |cells: &[&str]| {
            let padded: Vec<String> = cells
                .iter()
                .zip(columns)
                .zip(&widths)
                .map(|((cell, column), width)| match column.right {
                    true => format!(" {cell:>width$} "),
                    false => format!(" {cell:<width$} "),
                })
                .collect();
            format!("|{}|", padded.join("|"))
        };
        let tall = rows.iter().flatten().any(|cell| 1 < cell.len());
        let titles: Vec<&str> = columns.iter().map(|column| column.title).collect();
        let mut lines = vec![titled(&rule, &self.title), line(&titles), rule.clone()];
        for (index, row) in rows.iter().enumerate() {
            if tall && 0 < index {
                lines.push(rule.clone());
            }
            for depth in 0..row.iter().map(Vec::len).max().unwrap_or(1).max(1) {
                let cells: Vec<&str> = row.iter().map(|cell| cell.get(depth).map_or("", String::as_str)).collect();
                lines.push(line(&cells));
            }
        }
        lines.push(rule);
        lines.join("\n")
    }
}

/// Puts the title over the start of the upper edge.
fn titled(rule: &str, title: &str) -> String {
    if title.is_empty() {
        return rule.to_owned();
    }
    let shown: String = format!(" {title} ").chars().take(rule.len().saturating_sub(2)).collect();
    let rest: String = rule.chars().skip(1 + shown.chars().count()).collect();
    format!("+{shown}{rest}")
}

/// A cell as lines for people: maps one entry a line.
fn block(cell: &Cell) -> Vec<String> {
    match cell {
        Value::Object(fields) => fields.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect(),
        other => flow(other).lines().map(str::to_owned).collect(),
    }
}

/// A cell as one text.
fn flow(cell: &Cell) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            let entries: Vec<String> = fields.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// A row as a map in the order of the columns, empty cells left out.
struct Record<'a> {
    columns: &'a [Column<'a>],
    row: &'a [Cell],
}

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (column, cell) in self.columns.iter().zip(self.row).filter(|(_, cell)| !cell.is_null()) {
            map.serialize_entry(column.key, cell)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_of_several_lines_are_ruled() {
        let table = Table {
            title: "T".into(),
            columns: vec![Column::left("A"), Column::right("Number")],
            rows: vec![vec![json!({"x": 1, "y": true}), json!(7)], vec![json!("b"), Value::Null]],
            in_title: 0,
        };
        let wanted = "\
+ T -----+--------+
| A       | Number |
+---------+--------+
| x: 1    |      7 |
| y: true |        |
+---------+--------+
| b       |        |
+---------+--------+";
        assert_eq!(table.render(Format::Pretty), wanted.replacen("+ T -----+", "+ T ------+", 1));
        assert_eq!(table.render(Format::Tsv), "A\tNumber\n{x: 1, y: true}\t7\nb\t");
        assert_eq!(table.render(Format::Json), r#"[{"A":{"x":1,"y":true},"Number":7},{"A":"b"}]"#);
    }
}
