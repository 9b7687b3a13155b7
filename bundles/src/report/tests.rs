//! Pages and papers of scans.

use camino::Utf8Path;

use super::*;
use crate::scan::tool;
use crate::scan::{Allowed, DatabaseFacts, Kind};

fn report() -> Report {
    let finding = |severity: Severity, id: &str, place: &str| Finding {
        id: id.to_owned(),
        kind: Kind::Configuration,
        severity,
        title: format!("What {id} says, with <markup> & “quotes”"),
        place: place.to_owned(),
        package: None,
        installed: None,
        fixed_in: None,
        score: None,
        aliases: Vec::new(),
        reason: "Because it is so, and because a reason may be long enough to need more than one line on paper."
            .to_owned(),
        fix: "set `tls.mode: local-ca`".to_owned(),
        url: Some("https://example.com/a".to_owned()),
    };
    let mut report = Report::new("textnlp-offline-1.0.0.tar", "2026-09-01T12:00:00Z".parse().unwrap());
    for nth in 0..40 {
        report.findings.push(finding(
            Severity::Low,
            "memory-unlimited",
            &format!("configs/compose.yaml: services.s{nth}"),
        ));
        report.findings.push(finding(
            Severity::High,
            &format!("id-{nth}"),
            &format!("configs/{}.yaml", "long/".repeat(nth)),
        ));
    }
    let mut vulnerable = finding(Severity::Critical, "RUSTSEC-2026-0001", "sbom/program.cdx.json");
    vulnerable.package = Some("tar".to_owned());
    vulnerable.installed = Some("0.4.20".to_owned());
    vulnerable.fixed_in = Some(">= 0.4.36".to_owned());
    vulnerable.score = Some(9.8);
    vulnerable.aliases = vec!["CVE-2026-1".to_owned()];
    report.findings.push(vulnerable);
    let until = "2027-01-31".parse().unwrap();
    report.allowed.push(Allowed {
        finding: finding(Severity::Info, "image-shell", "image a"),
        reason: "needed".to_owned(),
        until,
    });
    report.databases.push(DatabaseFacts {
        name: "RustSec".to_owned(),
        date: "2026-08-21".parse().unwrap(),
        digest: textnlp_models::Digest::of(b""),
        age_days: 11,
        advisories: 1225,
    });
    report.listed("crates of sbom/program.cdx.json", 431, "matched against 1225 advisories");
    report.not_looked_at(
        "Debian:12 packages of image postgres:15",
        "not matched, because there is no advisory data for debian 12; packages: 83",
        false,
    );
    report.not_looked_at("long", "why ".repeat(1500), true);
    report.finish()
}

#[test]
fn report_round_trips_through_its_json_document() {
    let report = report();
    let bytes = to_json(&report);
    assert_eq!(from_json(&bytes, "a").unwrap(), report);
    let later = String::from_utf8(bytes).unwrap().replace("textnlp-scan/1", "textnlp-scan/9");
    assert!(from_json(later.as_bytes(), "a").is_err());
}

#[test]
fn report_json_keys_are_stable() {
    let value: serde_json::Value = serde_json::from_slice(&to_json(&report())).unwrap();
    let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&value), "format target made_at databases findings allowed listed not_looked_at summary");
    assert_eq!(
        keys(&value["findings"][0]),
        "id kind severity title where package installed fixed_in score aliases reason fix url"
    );
    assert_eq!(keys(&value["databases"][0]), "name date digest age_days advisories");
    assert_eq!(keys(&value["summary"]), "critical high medium low info allowed not_looked_at");
}

#[test]
fn html_report_is_complete_escaped_and_self_contained() {
    let page = to_html("Security scan", &[report()], Some(Severity::High));
    for wanted in [
        "✗ shut",
        "RUSTSEC-2026-0001",
        "&lt;markup&gt; &amp;",
        "fixed in &gt;= 0.4.36, CVSS 9.8",
        "40 places",
        "no advisory data for debian 12",
        "✗ required",
        "11 days old",
    ] {
        assert!(page.contains(wanted), "{wanted} is not in the page");
    }
    for never in ["<markup>", "<script", "src=", "@import", "url("] {
        assert!(!page.contains(never), "{never} is in the page");
    }
    let clean = Report::new("a", "2026-09-01T12:00:00Z".parse().unwrap()).finish();
    let page = to_html("Security scan", &[clean], Some(Severity::High));
    assert!(page.contains("✓ open") && page.contains("No findings in what was scanned."));
}

#[test]
fn unsafe_urls_are_not_linked_in_the_html_report() {
    let mut report = report();
    report.findings[0].url = Some("javascript:alert(1)".to_owned());
    assert!(!to_html("a", &[report], None).contains("href=\"javascript"));
}

#[test]
fn pdf_report_is_valid_and_lists_every_finding() {
    let report = report();
    let bytes = to_pdf("Security scan of a bundle", std::slice::from_ref(&report), Some(Severity::High));
    assert_eq!(bytes, to_pdf("Security scan of a bundle", std::slice::from_ref(&report), Some(Severity::High)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pdf");
    std::fs::write(&path, &bytes).unwrap();
    let path = path.to_str().unwrap();
    if let Some(told) = tool::run("qpdf", "qpdf", &["--check", path], "") {
        assert!(told.contains("No syntax or stream encoding errors"), "{told}");
    }
    if let Some(text) = tool::run("pdftotext", "pdftotext", &["-layout", path, "-"], "") {
        for finding in &report.findings {
            assert!(text.contains(&finding.id), "{} is not on paper", finding.id);
        }
        // A row that is longer than a page goes on on the next, whole.
        assert!(text.matches("why").count() >= 1500, "{}", text.matches("why").count());
        assert!(text.contains("page 1 of ") && text.contains("not matched, because"), "{text}");
    }
    if let Some(told) = tool::run("pdfinfo", "pdfinfo", &[path], "") {
        assert!(told.contains("Title:           Security scan of a bundle") && told.contains("A4"), "{told}");
    }
}

#[test]
fn pdf_of_tables_is_valid_and_has_every_row() {
    let columns = ["day", "requests"].map(str::to_owned);
    let rows: Vec<Vec<String>> = (1..=200).map(|day| vec![format!("day-{day}"), "7".repeat(90)]).collect();
    let lines = [("p95", vec![(1.0, 30.0), (2.0, 487.0)]), ("errors", vec![(2.0, 3.0)])];
    let lines = lines.map(|(name, points)| Line { name, colour: LineColour::Blue, points });
    let limit = Some((200.0, "limit of p95".to_owned()));
    let amount = |n: u32| Amount { name: format!("service {n} <b>"), value: n.into(), text: format!("{n}.00 USD") };
    let amounts: Vec<Amount> = (1..=10).map(amount).collect();
    let page = Chart { title: "Amounts", plot: Plot::Amounts(amounts.clone()) }.to_page().to_string();
    assert!(page.contains("service 10 &lt;b&gt;") && !page.contains("<b>"), "{page}");
    let document = TableDocument {
        title: "Performance of staging",
        at: "2026-11-24T12:00:00Z".parse().unwrap(),
        values: &[("p95".to_owned(), "40 ms".to_owned())],
        charts: &[
            Chart { title: "Latency, ms", plot: Plot::Lines { x_unit: "s", lines: lines.into(), limit } },
            Chart { title: "Distribution", plot: Plot::Bars(vec![(1.0, 0), (2.0, 7), (4.0, 3), (8.0, 0)]) },
            Chart { title: "Amounts", plot: Plot::Amounts(amounts) },
        ],
        tables: &[("Days", &columns, &rows), ("Empty", &columns, &[])],
        notes: &["a remark".to_owned()],
        foot: "textnlp-deploy, monthly report",
    };
    let bytes = tables_to_pdf(&document);
    assert!(bytes.starts_with(b"%PDF-") && bytes == tables_to_pdf(&document));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pdf");
    std::fs::write(&path, &bytes).unwrap();
    let path = path.to_str().unwrap();
    if let Some(told) = tool::run("qpdf", "qpdf", &["--check", path], "") {
        assert!(told.contains("No syntax or stream encoding errors"), "{told}");
    }
    if let Some(text) = tool::run("pdftotext", "pdftotext", &["-layout", path, "-"], "") {
        let plotted = [
            "Latency, ms",
            "p95",
            "errors",
            "500",
            "limit of p95",
            "Distribution",
            "<= 2 ms",
            "<= 4 ms",
            "10.00 USD",
            "3 others",
        ];
        let printed = ["day-1 ", "day-200", "40 ms", "a remark", "page 2 of ", "monthly report"];
        for wanted in plotted.into_iter().chain(printed) {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(!text.contains("service 3"), "the smallest are one bar: {text}");
        assert!(!text.contains("<= 8 ms"), "an empty bucket at the end: {text}");
        assert!(!text.contains("Empty") && !text.contains("security scan"), "{text}");
    }
}

#[test]
fn legacy_report_files_are_merged_into_one_report() {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(folder.path()).unwrap();
    let images = [("docker.io/library/postgres:15".to_owned(), report()), ("quay.io/postgres:16".to_owned(), report())];
    let written = write_legacy(root, &images, Some(&report()), Some(&report())).unwrap();
    let names: Vec<&str> = written.iter().map(|p| p.file_name().unwrap()).collect();
    assert_eq!(names, ["scan_postgres.json", "scan_postgres-2.json", "scan_configs.json", "scan_python_packages.json"]);
    std::fs::write(root.join("other.json"), "{}").unwrap();
    let reports = from_pattern(root.join("scan_*.json").as_str()).unwrap();
    assert_eq!(reports.len(), 4);
    let page = to_html("All", &reports, None);
    assert_eq!(page.matches("<h2>").count(), 4);
    assert!(to_pdf("All", &reports, None).len() > 1000);
    // An image whose file would have the name of another scan.
    let image = [("python_packages:1".to_owned(), report())];
    let written = write_legacy(root, &image, None, None).unwrap();
    assert_eq!(written[0].file_name(), Some("scan_python_packages-2.json"));
    assert!(from_pattern(root.join("none_*.json").as_str()).is_err());
    assert!(from_pattern(root.join("other.json").as_str()).is_err());
}
