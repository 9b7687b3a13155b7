//! The text output of reports of tables.

use std::fmt::Write as _;

use textnlp_orchestrator::report::table::{Table, TableReport};

/// The title, the numbers, the tables and the notes.
pub fn text(report: &TableReport) -> String {
    let mut text = report.title.clone();
    let longest = report.tiles.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    for (name, value) in &report.tiles {
        let _ = write!(text, "\n  {name:<longest$}  {value}");
    }
    for table in report.tables.iter().filter(|table| !table.rows.is_empty()) {
        let _ = write!(text, "\n{}", table.title);
        text.push_str(&lines(table));
    }
    for note in &report.notes {
        let _ = write!(text, "\n  note: {note}");
    }
    text
}

/// A table, each column as wide as its longest line. Further lines of a value are below its first one.
pub fn lines(table: &Table) -> String {
    let all = || std::iter::once(&table.columns).chain(&table.rows);
    let longest = |value: &String| value.lines().map(|line| line.chars().count()).max();
    let width = |column: usize| all().filter_map(|row| row.get(column)).filter_map(longest).max();
    let widths: Vec<usize> = (0..table.columns.len()).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in all() {
        let height = row.iter().map(|value| value.lines().count()).max().unwrap_or_default();
        for nth in 0..height {
            let line = |value: &String| value.lines().nth(nth).unwrap_or_default().to_owned();
            let cells = row.iter().zip(&widths).map(|(value, width)| format!("{:<width$}", line(value)));
            let _ = write!(text, "\n  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
    text
}
