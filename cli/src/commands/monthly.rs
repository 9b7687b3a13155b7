//! `cost report` and `performance report`: a month of a running environment.

use jiff::Timestamp;
use textnlp_orchestrator::monthly::Month;
use textnlp_orchestrator::report::results::{self, DatabaseDocument, LoadDocument, ModelDocument};
use textnlp_orchestrator::report::table::TableReport;
use textnlp_service::report_files::{self, ReportFormat};
use textnlp_service::{Scope, monthly as service, running};

use super::prelude::*;
use crate::deployment;
use crate::operations_args::{Cost, MonthlyArgs, Performance, PerformanceReportArgs};
use crate::table_view;

/// `performance report`.
pub async fn performance(session: &Session, command: &Performance, console: Console) -> Result<Success, Failure> {
    let Performance::Report(args) = command;
    let now = Timestamp::now();
    let month = started(args.monthly.month, now)?;
    let other = args.compare.map(|other| started(Some(other), now)).transpose()?;
    if other == Some(month) {
        let error = anyhow::anyhow!("{month} cannot be compared with itself");
        return Err(Failure::usage("same_month", error).hint(format!("--compare {}", month.previous())));
    }
    let results = Results::read(args)?;
    let chosen = session.load(console)?;
    let running = running::running(&chosen.scope).await?;
    let progress = Progress::new(console);
    let mut report = progress.done(service::performance(&chosen, &running, (month, other), now, &progress).await)?;
    results.add_to(&mut report);
    finish(&chosen.scope, &args.monthly, &report, &format!("performance-{month}"))
}

/// `cost report`.
pub async fn cost(session: &Session, command: &Cost, console: Console) -> Result<Success, Failure> {
    let Cost::Report(args) = command;
    let now = Timestamp::now();
    let month = started(args.monthly.month, now)?;
    let chosen = session.load(console)?;
    let running = running::running(&chosen.scope).await?;
    let deployment = deployment::recorded(session, chosen).await?;
    let mut dimensions = args.breakdown.clone();
    dimensions.dedup();
    let progress = Progress::new(console);
    let report = service::cost(&deployment, &running, &dimensions, args.billed, (month, now), &progress).await;
    progress.finish();
    finish(&deployment.chosen.scope, &args.monthly, &report?, &format!("cost-{month}"))
}

/// The results of other commands that a report includes.
struct Results {
    loads: Vec<(String, LoadDocument)>,
    models: Vec<ModelDocument>,
    database: Option<DatabaseDocument>,
}

impl Results {
    /// Reads the files; the error has what is wrong with each of them.
    fn read(args: &PerformanceReportArgs) -> Result<Self, Failure> {
        let mut problems = Vec::new();
        let mut loads = Vec::new();
        for file in &args.loads {
            match results::read(file, "load -o json") {
                Ok(load) => loads.push((file.file_stem().unwrap_or(file.as_str()).to_owned(), load)),
                Err(why) => problems.push(why),
            }
        }
        let mut models = Vec::new();
        for file in &args.models {
            match results::read(file, "model bench -o json") {
                Ok(model) => models.push(model),
                Err(why) => problems.push(why),
            }
        }
        let database = args.database.as_ref().map(|file| results::read(file, "db bench -o json")).transpose();
        match database {
            Ok(database) if problems.is_empty() => Ok(Self { loads, models, database }),
            database => {
                problems.extend(database.err());
                Err(Failure::usage("unreadable_result", anyhow::anyhow!(problems.join("\n"))))
            }
        }
    }

    fn add_to(&self, report: &mut TableReport) {
        if !self.loads.is_empty() {
            report.add_loads(&self.loads);
        }
        if !self.models.is_empty() {
            report.add_models(&self.models);
        }
        if let Some(database) = &self.database {
            report.add_database(database);
        }
    }
}

/// The month that was asked for, or the current one. It has started.
fn started(month: Option<Month>, now: Timestamp) -> Result<Month, Failure> {
    let month = month.unwrap_or(Month::of(now));
    if month.start() > now {
        let error = anyhow::anyhow!("{month} has not started");
        return Err(Failure::usage("future_month", error).hint(format!("--month {}", Month::of(now))));
    }
    Ok(month)
}

/// Writes the page, and returns the text and the document.
fn finish(scope: &Scope, args: &MonthlyArgs, report: &TableReport, name: &str) -> Result<Success, Failure> {
    let file = report_files::write(scope, report, (name, ReportFormat::Html), args.html.as_deref())?;
    if let Some(pdf) = &args.pdf {
        report_files::write(scope, report, (name, ReportFormat::Pdf), Some(pdf))?;
    }
    let mut document = report.document.clone();
    document["pdf"] = json!(args.pdf);
    document["report"] = json!(file);
    Ok(Success::new(format!("{}\n  report {file}", table_view::text(report)), document))
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::monthly::MonthlyUsage;
    use textnlp_orchestrator::report::monthly;

    use super::*;

    #[test]
    fn columns_are_aligned_and_days_without_records_are_named() {
        let now = "2026-11-02T12:00:00Z".parse().unwrap();
        let report = monthly::performance("staging", (Month::of(now), &MonthlyUsage::default()), None, now);
        let shown = table_view::text(&report);
        for line in [
            "Performance of staging in 2026-11\n  requests",
            "\n  day         requests      errors  availability",
            "\n  2026-11-01  not recorded\n  2026-11-02  not recorded\n",
            "\n  note: 2026-11 is not recorded",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
    }
}
