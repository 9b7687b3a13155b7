//! `bundle scan`: known vulnerabilities, weak settings and leaked secrets, with a gate.

use anyhow::Context;
use camino::Utf8Path;
use jiff::Timestamp;
use textnlp_bundle::report;
use textnlp_bundle::scan::{self, Contents, Database, Folder, Gate, Report, Settings, Severity};
use textnlp_service::Platform as _;
use textnlp_service::audit;
use textnlp_service::bundle::{advisories, scan_failed as failed};

use super::open;
use crate::bundle_args::{FailOn, Scan};
use crate::clouds::Linked;
use crate::commands::prelude::*;

/// Limit of findings in the text output. The reports have all of them.
const SHOWN: usize = 30;

/// `bundle scan`.
pub fn scan(session: &Session, args: &Scan, console: Console) -> Result<Success, Failure> {
    let progress = Progress::new(console);
    progress.doing("scanning");
    let scan = scanner(session, args)?;
    let reports = tokio::task::block_in_place(|| match &args.target {
        _ if args.reports.is_some() => {
            report::from_pattern(args.reports.as_deref().unwrap_or_default()).map_err(failed)
        }
        Some(target) if target.is_dir() => {
            let folder = Folder::open(target).with_context(|| format!("list {target}"))?;
            Ok(vec![scan.of_folder(target.as_str(), &folder).map_err(failed)?])
        }
        Some(target) => {
            let bundle = open(target)?;
            Ok(vec![scan.of_folder(target.as_str(), &bundle as &dyn Contents).map_err(failed)?])
        }
        None => own(session, &scan, console),
    });
    progress.finish();
    let reports: Vec<Report> = reports?;
    let fail_on = severity(args.fail_on);
    let written = match &args.out {
        Some(folder) => write(folder, &reports, fail_on)?,
        None => Vec::new(),
    };
    let mut written = written;
    if let (true, Some(folder)) = (args.per_image, &args.out) {
        written.extend(tokio::task::block_in_place(|| per_image(&scan, args, folder))?);
    }
    let mut text = String::new();
    let mut blockers = Vec::new();
    for found in &reports {
        text.push_str(&text_of(found));
        if let Gate::Shut { blockers: more } = scan::gate(found, fail_on) {
            blockers.extend(more);
        }
    }
    for path in &written {
        text.push_str(&format!("\n  report {path}"));
    }
    let document = json!({
        "reports": reports, "files": written, "gate": { "state": if blockers.is_empty() { "open" } else { "shut" }, "blockers": blockers },
    });
    if blockers.is_empty() {
        return Ok(Success::new(text.trim_start().to_owned(), document));
    }
    console.stream(&format!("{}\n", text.trim_start()));
    let (what, hint) = refusal(&reports, fail_on);
    let error = anyhow::anyhow!("{}", blockers.join("\n")).context(what);
    Err(Failure::new(Exit::GateShut, "scan", error).hint(hint).document(document))
}

/// Why the gate of these reports is not open, and what opens it.
fn refusal(reports: &[Report], fail_on: Severity) -> (&'static str, String) {
    let is_bad = reports.iter().any(|report| report.findings.iter().any(|finding| finding.severity >= fail_on));
    let missed: Vec<_> =
        reports.iter().filter(|report| report.not_looked_at.iter().any(|missed| missed.required)).collect();
    let mut hints = Vec::new();
    if is_bad {
        hints.push("fix the findings, or accept them with --allow FILE (id, path, reason, until)");
    }
    if missed.iter().any(|report| report.databases.is_empty()) {
        hints.push("give a copy of the RustSec advisory database with --advisories DIR");
    } else if !missed.is_empty() {
        hints.push("provide what `NOT scanned` names, such as more advisories with --advisories DIR");
    }
    let what = if is_bad { "the scan found problems" } else { "the scan is not complete" };
    (what, hints.join("\n"))
}

fn scanner(session: &Session, args: &Scan) -> Result<scan::Scan, Failure> {
    let mut settings = Settings { max_age_days: args.age.advisories_max_age, ..Settings::at(Timestamp::now()) };
    if let Some(path) = &args.allow {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        settings.allow = scan::allow::read(&text, path.as_str()).map_err(failed)?;
    }
    let mut scan = scan::Scan::new(settings);
    for folder in &args.advisories {
        scan = scan.with(Database::from_folder(folder).map_err(failed)?);
    }
    if args.advisories.is_empty() && args.reports.is_none() && !includes_advisories(args.target.as_deref())? {
        scan = match session.advisories().on_this_machine() {
            Some(found) => scan.with(found.database),
            None => scan,
        };
    }
    Ok(scan)
}

fn includes_advisories(target: Option<&Utf8Path>) -> Result<bool, Failure> {
    Ok(match target {
        None => false,
        // Standard input can be read only once.
        Some(target) if target == "-" => true,
        Some(folder) if folder.is_dir() => folder.join(scan::CARRIED).is_file(),
        Some(file) => open(file)?.manifest().files.iter().any(|file| file.path == scan::CARRIED),
    })
}

/// Reports on this program's crates and on the environment of `--env`.
fn own(session: &Session, scan: &scan::Scan, console: Console) -> Result<Vec<Report>, Failure> {
    let mut reports = vec![scan.of_packages("this program", &audit::linked(Linked.build().features))];
    if session.global.env.is_some() || session.global.file.is_some() {
        let loaded = session.loaded(console)?;
        let name = loaded.environment.environment.to_string();
        reports.push(scan.of_environment(&name, &[(format!("{name}.yaml"), loaded.to_yaml(false))]));
    }
    Ok(reports)
}

/// The lowest severity that fails the scan.
pub fn severity(fail_on: FailOn) -> Severity {
    match fail_on {
        FailOn::Low => Severity::Low,
        FailOn::Medium => Severity::Medium,
        FailOn::High => Severity::High,
        FailOn::Critical => Severity::Critical,
    }
}

fn write(folder: &Utf8Path, reports: &[Report], fail_on: Severity) -> Result<Vec<String>, Failure> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    let title = "Scan findings";
    let files = [
        ("scan.html", report::to_html(title, reports, Some(fail_on)).into_bytes()),
        ("scan.pdf", report::to_pdf(title, reports, Some(fail_on))),
    ];
    let json = reports.iter().enumerate().map(|(n, found)| {
        (if n == 0 { "scan.json".to_owned() } else { format!("scan-{}.json", n + 1) }, report::to_json(found))
    });
    let mut written = Vec::new();
    for (name, bytes) in files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).chain(json) {
        let path = folder.join(name);
        textnlp_files::Replace::umask().write(&path, &bytes).with_context(|| format!("write {path}"))?;
        written.push(path.to_string());
    }
    Ok(written)
}

/// Reports with the file names that older scripts expect.
fn per_image(scan: &scan::Scan, args: &Scan, folder: &Utf8Path) -> Result<Vec<String>, Failure> {
    let Some(target) = &args.target else {
        return Err(Failure::usage("usage", anyhow::anyhow!("--per-image applies to the images of a bundle only"))
            .hint("textnlp-deploy bundle scan FILE --out DIR --per-image"));
    };
    let contents: Box<dyn Contents> = if target.is_dir() {
        Box::new(Folder::open(target).with_context(|| format!("list {target}"))?)
    } else {
        Box::new(open(target)?)
    };
    let images = scan.of_images(&*contents, "images").map_err(failed)?;
    let configs = scan.of_configs("configs", &*contents);
    let packages = scan.of_python_packages("packages", &*contents).map_err(failed)?;
    let written = report::write_legacy(folder, &images, Some(&configs), packages.as_ref())
        .with_context(|| format!("write to {folder}"))?;
    Ok(written.iter().map(ToString::to_string).collect())
}

fn text_of(found: &Report) -> String {
    let mut text = format!("\n{}", found.target);
    match found.databases.as_slice() {
        [] => text.push_str(": no advisories"),
        databases => {
            let dates: Vec<String> = databases.iter().map(advisories::said).collect();
            text.push_str(&format!(": advisories: {}", dates.join(", ")));
        }
    }
    for severity in [Severity::Critical, Severity::High, Severity::Medium, Severity::Low, Severity::Info] {
        let count = found.summary.of(severity);
        if count > 0 {
            text.push_str(&format!(", {count} {severity}"));
        }
    }
    if found.findings.is_empty() {
        let is_whole = !found.not_looked_at.iter().any(|missed| missed.required);
        text.push_str(if is_whole { ", nothing found" } else { ", nothing found in what was scanned" });
    }
    for listed in &found.listed {
        text.push_str(&format!("\n  {}: {}, {}", listed.what, listed.count, listed.how));
    }
    for missed in &found.not_looked_at {
        text.push_str(&format!("\n  NOT scanned: {}: {}", missed.what, missed.why));
    }
    for finding in found.findings.iter().take(SHOWN) {
        text.push_str(&format!(
            "\n  {:<8} {}  {}\n           {}",
            finding.severity, finding.place, finding.title, finding.fix
        ));
    }
    if found.findings.len() > SHOWN {
        text.push_str(&format!("\n  and {} more, in the reports of --out DIR", found.findings.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scan_without_advisories_is_not_complete_and_found_nothing() {
        let scan = scan::Scan::new(Settings::at(Timestamp::now()));
        let report = scan.of_packages("this program", &audit::linked(Linked.build().features));
        let text = text_of(&report);
        assert!(text.contains(": no advisories, nothing found in what was scanned"), "{text}");
        let (what, hint) = refusal(&[report], Severity::Critical);
        assert_eq!(what, "the scan is not complete");
        assert!(hint.contains("--advisories DIR") && !hint.contains("--allow"), "{hint}");
    }
}
