//! Compliance reports: the controls of a framework, with evidence of the running environment.
//!
//! A report says what was measured. It is no certificate: an auditor decides, and the controls of an organization are
//! listed as the operator's.

mod controls;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_orchestrator::environment::model::Framework;
use textnlp_orchestrator::report::table::{Table, TableReport, names};

use crate::checks::{CheckLine, CheckResult};
use crate::security::Rule;

pub use controls::controls;

/// The edition that the controls of a framework are from.
pub fn edition(framework: Framework) -> &'static str {
    match framework {
        Framework::Gdpr => "Regulation (EU) 2016/679",
        Framework::Hipaa => "45 CFR Part 164, Subpart C",
        Framework::Soc2 => "Trust Services Criteria 2017, points of focus of 2022",
    }
}

/// One control.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// Its number in the framework.
    pub id: &'static str,
    /// Its subject.
    pub title: &'static str,
    /// The rules of the audit that are its evidence.
    pub rules: &'static [Rule],
    /// What no program can measure.
    pub yours: Option<&'static str>,
}

/// The state of a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlState {
    /// Every line of its evidence is ok.
    Met,
    /// A line of its evidence failed or warns.
    NotMet,
    /// A line of its evidence could not be measured.
    Unknown,
    /// It has no evidence that a program can measure.
    Yours,
}

impl ControlState {
    /// As text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not met",
            Self::Unknown => "unknown",
            Self::Yours => "yours",
        }
    }
}

/// A control with its state and evidence.
#[derive(Debug)]
pub struct AssessedControl<'a> {
    /// The control.
    pub control: &'static Control,
    /// Its state.
    pub state: ControlState,
    /// The lines of the audit.
    pub evidence: Vec<&'a CheckLine>,
    /// Rules that the audit has no line of.
    pub unmeasured: Vec<Rule>,
}

/// Assesses the controls of a framework by the lines of an audit.
pub fn assess(framework: Framework, lines: &[CheckLine]) -> Vec<AssessedControl<'_>> {
    let assessed = controls(framework).iter().map(|control| {
        let of = |rule: &Rule| {
            let rule = *rule;
            lines.iter().filter(move |line| line.rule == Some(rule))
        };
        let evidence: Vec<_> = control.rules.iter().flat_map(of).collect();
        let unmeasured: Vec<Rule> = control.rules.iter().copied().filter(|rule| of(rule).next().is_none()).collect();
        let has = |result: CheckResult| evidence.iter().any(|line| line.mark == result);
        let state = match () {
            () if control.rules.is_empty() => ControlState::Yours,
            () if has(CheckResult::Problem) || has(CheckResult::Warning) => ControlState::NotMet,
            () if has(CheckResult::Unknown) || !unmeasured.is_empty() => ControlState::Unknown,
            () => ControlState::Met,
        };
        AssessedControl { control, state, evidence, unmeasured }
    });
    assessed.collect()
}

/// The environment of a report.
pub struct ReportSubject<'a> {
    /// Its name.
    pub environment: &'a str,
    /// Its phase.
    pub phase: &'a str,
    /// Its regions, by site.
    pub regions: &'a [(String, String)],
    /// When its audit was made.
    pub at: Timestamp,
}

/// The report of a framework.
pub fn report(framework: Framework, subject: &ReportSubject<'_>, lines: &[CheckLine]) -> TableReport {
    let ReportSubject { environment, phase, regions, at } = subject;
    let assessed = assess(framework, lines);
    let count = |state: ControlState| assessed.iter().filter(|one| one.state == state).count();
    let states = [ControlState::Met, ControlState::NotMet, ControlState::Unknown, ControlState::Yours];
    let tiles = states.map(|state| (state.as_str().to_owned(), count(state).to_string()));
    let measured = assessed.iter().filter(|one| one.state != ControlState::Yours).map(|one| {
        let AssessedControl { control, state, .. } = one;
        vec![control.id.to_owned(), control.title.to_owned(), state.as_str().to_owned(), evidence_text(one)]
    });
    let yours = assessed.iter().filter_map(|one| {
        Some(vec![one.control.id.to_owned(), one.control.title.to_owned(), one.control.yours?.into()])
    });
    let document = assessed.iter().map(|one| {
        json!({
            "id": one.control.id, "title": one.control.title, "state": one.state,
            "evidence": one.evidence.iter().map(|line| line.document()).collect::<Vec<_>>(), "unmeasured": one.unmeasured, "yours": one.control.yours,
        })
    });
    let places: Vec<String> = regions.iter().map(|(site, region)| format!("{site}: {region}")).collect();
    let mut notes = vec![
        "measured on the running environment by `security audit --full`; a control with a warning is not met"
            .to_owned(),
        "the report states what was measured; it is no certificate and no legal advice".to_owned(),
    ];
    let exempted = lines.iter().filter(|line| line.rule == Some(Rule::Waivers) && line.mark != CheckResult::Well);
    notes.extend(exempted.map(|line| format!("exemption from a gate: {}", line.says)));
    let document = json!({
        "framework": framework, "edition": edition(framework), "environment": environment, "phase": phase, "at": at,
        "regions": regions.iter().map(|(site, region)| json!({ "site": site, "region": region })).collect::<Vec<_>>(),
        "is_complete": is_complete(&assessed), "controls": document.collect::<Vec<Value>>(), "notes": notes,
    });
    TableReport {
        title: format!("{} report of {environment}", framework.title()),
        at: *at,
        facts: vec![
            ("environment".into(), format!("{environment}, phase {phase}")),
            ("framework".into(), edition(framework).to_owned()),
            ("regions".into(), places.join("; ")),
        ],
        tiles: tiles.into(),
        tables: vec![
            Table {
                title: "Measured controls",
                columns: names(&["control", "subject", "state", "evidence"]),
                rows: measured.collect(),
            },
            Table {
                title: "Controls of your organization",
                columns: names(&["control", "subject", "what is yours"]),
                rows: yours.collect(),
            },
        ],
        notes,
        document,
        charts: Vec::new(),
    }
}

/// Whether every control with measurable evidence is met.
pub fn is_complete(assessed: &[AssessedControl<'_>]) -> bool {
    assessed.iter().all(|one| matches!(one.state, ControlState::Met | ControlState::Yours))
}

/// The evidence that decides the state: what is not ok, else all of it.
fn evidence_text(assessed: &AssessedControl<'_>) -> String {
    let line = |line: &&CheckLine| {
        let site = line.site.as_ref().map_or(String::new(), |site| format!("{site}: "));
        let state = match line.mark {
            CheckResult::Well => String::new(),
            mark => format!(" ({})", mark.state()),
        };
        format!("{site}{}: {}{state}", line.name, line.says.replace('\n', "; "))
    };
    let is_decisive = |one: &&&CheckLine| assessed.state == ControlState::Met || one.mark != CheckResult::Well;
    let mut decisive: Vec<String> = assessed.evidence.iter().filter(is_decisive).map(line).collect();
    decisive.extend(assessed.unmeasured.iter().map(|rule| format!("{}: not measured", rule.id())));
    decisive.join("\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::security::RULES;

    fn line(rule: Rule, mark: CheckResult) -> CheckLine {
        CheckLine { site: None, rule: Some(rule), name: rule.id().to_owned(), mark, says: "seen".to_owned(), fix: None }
    }

    #[test]
    fn control_is_met_only_by_measured_evidence_without_a_warning() {
        let all = |mark: CheckResult| RULES.map(|definition| line(definition.rule, mark));
        for framework in Framework::ALL {
            let states = |lines: &[CheckLine]| -> BTreeSet<&str> {
                assess(framework, lines).iter().map(|one| one.state.as_str()).collect()
            };
            assert_eq!(states(&all(CheckResult::Well)), BTreeSet::from(["met", "yours"]));
            assert_eq!(states(&all(CheckResult::Warning)), BTreeSet::from(["not met", "yours"]));
            assert_eq!(states(&all(CheckResult::Problem)), BTreeSet::from(["not met", "yours"]));
            assert_eq!(states(&all(CheckResult::Unknown)), BTreeSet::from(["unknown", "yours"]));
            assert_eq!(states(&[]), BTreeSet::from(["unknown", "yours"]), "what was not measured is not met");
            assert!(is_complete(&assess(framework, &all(CheckResult::Well))));
            assert!(!is_complete(&assess(framework, &[])));
        }
    }

    #[test]
    fn one_failure_decides_the_controls_that_it_is_evidence_of() {
        let mut lines = RULES.map(|definition| line(definition.rule, CheckResult::Well));
        for line in &mut lines {
            if line.rule == Some(Rule::BackupEncryption) {
                line.mark = CheckResult::Problem;
            }
        }
        let of =
            |id: &str| assess(Framework::Gdpr, &lines).iter().find(|one| one.control.id == id).map(|one| one.state);
        assert_eq!(of("Art. 32(1)(a)"), Some(ControlState::NotMet));
        assert_eq!(of("Art. 32(1)(c)"), Some(ControlState::Met));
    }

    #[test]
    fn numbers_of_controls_are_unique_and_every_control_says_what_it_needs() {
        for framework in Framework::ALL {
            let ids: BTreeSet<&str> = controls(framework).iter().map(|control| control.id).collect();
            assert_eq!(ids.len(), controls(framework).len());
            assert!(controls(framework).iter().all(|control| !control.rules.is_empty() || control.yours.is_some()));
        }
    }

    #[test]
    fn report_names_the_evidence_that_is_not_ok() {
        let mut lines = RULES.map(|definition| line(definition.rule, CheckResult::Well));
        for line in &mut lines {
            if line.rule == Some(Rule::Retention) {
                (line.mark, line.says) = (CheckResult::Problem, "records of <2020>\nare kept".to_owned());
            }
        }
        let regions = [("here".to_owned(), "local".to_owned())];
        let subject = ReportSubject {
            environment: "pilot",
            phase: "pilot",
            regions: &regions,
            at: "2026-11-25T00:00:00Z".parse().unwrap(),
        };
        let made = report(Framework::Soc2, &subject, &lines);
        assert_eq!(made.document["is_complete"], false);
        let page = made.to_html();
        assert!(page.contains("records of &lt;2020&gt;; are kept (failed)"), "{page}");
        assert!(page.contains("SOC 2 report of pilot") && page.contains("here: local"));
        let row = made.tables[0].rows.iter().find(|row| row[0] == "CC6.5").unwrap();
        assert_eq!(row[2], "not met");
    }
}
