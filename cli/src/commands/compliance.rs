//! `compliance report`: the controls of a framework, with evidence of the running environment.

use jiff::Timestamp;
use textnlp_service::compliance::{self, ReportSubject};
use textnlp_service::report_files::{self, ReportFormat};

use super::prelude::*;
use super::security;
use crate::operations_args::{Compliance, ComplianceReport, FileFormat};
use crate::table_view;

/// `compliance …`.
pub async fn compliance(session: &Session, command: &Compliance, console: Console) -> Result<Success, Failure> {
    let Compliance::Report(ComplianceReport { framework, format, out, audit }) = command;
    let (deployment, lines) = security::lines(session, audit, true, console).await?;
    let (scope, environment) = (&deployment.chosen.scope, &deployment.chosen.loaded.environment);
    let regions: Vec<_> = environment.sites.iter().map(|site| (site.name.to_string(), site.region.clone())).collect();
    let at = Timestamp::now();
    let phase = environment.phase.to_string();
    let subject = ReportSubject { environment: scope.name.as_str(), phase: &phase, regions: &regions, at };
    let report = compliance::report(*framework, &subject, &lines);
    let name = format!("compliance-{framework}-{}", at.strftime("%Y%m%dT%H%M%SZ"));
    let format = match format {
        FileFormat::Html => ReportFormat::Html,
        FileFormat::Pdf => ReportFormat::Pdf,
    };
    let file = report_files::write(scope, &report, (&name, format), out.as_deref())?;
    let mut document = report.document.clone();
    document["report"] = json!(file);
    let success = Success::new(format!("{}\n  report {file}", table_view::text(&report)), document);
    Ok(if report.document["is_complete"] == true { success } else { success.exit(Exit::Failed) })
}
