//! Files of reports.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::report::{TableDocument, tables_to_pdf};
use textnlp_files::Replace;
use textnlp_orchestrator::report::table::TableReport;

use crate::{Failure, Scope, output};

/// The format of a report's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportFormat {
    /// A page.
    Html,
    /// A PDF.
    Pdf,
}

impl ReportFormat {
    /// The extension of its files.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Pdf => "pdf",
        }
    }
}

/// Writes a report: to a file, or to `NAME.EXTENSION` in the folder of reports. Returns the file.
pub fn write(
    scope: &Scope,
    report: &TableReport,
    (name, format): (&str, ReportFormat),
    file: Option<&Utf8Path>,
) -> Result<Utf8PathBuf, Failure> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => {
            let reports = scope.folder.join("reports");
            std::fs::create_dir_all(&reports).with_context(|| format!("create {reports}"))?;
            reports.join(format!("{name}.{}", format.extension()))
        }
    };
    let bytes = match format {
        ReportFormat::Html => report.to_html().into_bytes(),
        ReportFormat::Pdf => to_pdf(report),
    };
    output::write(&file, Replace::umask(), &bytes)?;
    Ok(file)
}

/// Writes a report as a PDF.
pub fn write_pdf(report: &TableReport, file: &Utf8Path) -> Result<(), Failure> {
    output::write(file, Replace::umask(), &to_pdf(report))
}

fn to_pdf(report: &TableReport) -> Vec<u8> {
    let tables: Vec<_> =
        report.tables.iter().map(|table| (table.title, table.columns.as_slice(), table.rows.as_slice())).collect();
    let values = [report.facts.as_slice(), &report.tiles].concat();
    tables_to_pdf(&TableDocument {
        title: &report.title,
        at: report.at,
        values: &values,
        charts: &report.charts,
        tables: &tables,
        notes: &report.notes,
        foot: "textnlp-deploy",
    })
}
