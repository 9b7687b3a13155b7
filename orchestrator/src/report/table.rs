//! Reports of facts, numbers and tables, from which text, page and PDF are made.

use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_bundle::report::Chart;

use super::page;
use crate::monthly::time_text;

/// A report.
#[derive(Debug, Clone, PartialEq)]
pub struct TableReport {
    /// The title.
    pub title: String,
    /// When it was made.
    pub at: Timestamp,
    /// Facts for the header.
    pub facts: Vec<(String, String)>,
    /// The most important numbers, each with its name.
    pub tiles: Vec<(String, String)>,
    /// The tables.
    pub tables: Vec<Table>,
    /// What limits the numbers.
    pub notes: Vec<String>,
    /// The JSON document.
    pub document: Value,
    /// Its plots.
    pub charts: Vec<Chart>,
}

/// A table of a report.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Its title.
    pub title: &'static str,
    /// The names of its columns.
    pub columns: Vec<String>,
    /// Its rows, each as long as the columns.
    pub rows: Vec<Vec<String>>,
}

impl TableReport {
    /// The page: self-contained, without scripts.
    pub fn to_html(&self) -> String {
        let tables: Vec<Value> = self
            .tables
            .iter()
            .filter(|table| !table.rows.is_empty())
            .map(|table| {
                let cells = |row: &Vec<String>| row.iter().map(|text| json!([text, class(text)])).collect::<Vec<_>>();
                let rows: Vec<_> = table.rows.iter().map(cells).collect();
                json!({ "title": table.title, "columns": table.columns, "rows": rows })
            })
            .collect();
        let context = json!({
            "title": self.title, "at": time_text(self.at), "facts": self.facts, "tiles": self.tiles, "tables": tables,
            "notes": self.notes, "charts": self.charts.iter().map(Chart::to_page).collect::<Vec<_>>(),
        });
        page(include_str!("table.html"), context)
    }
}

/// The class of a cell: sentences wrap.
fn class(text: &str) -> &'static str {
    const SHORT: usize = 32;
    if text.chars().count() > SHORT { "sentence" } else { "number" }
}

/// The names of columns.
pub fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|name| (*name).to_owned()).collect()
}
