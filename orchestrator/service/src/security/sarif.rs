//! An audit as SARIF 2.1.0, the format of code-scanning services:
//! <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>.

use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::RULES;
use crate::checks::{CheckLine, CheckResult};

/// What was audited, and when.
pub struct SarifSubject<'a> {
    /// The name of the environment.
    pub environment: &'a str,
    /// Its file, as a relative URI; services show findings there.
    pub file: &'a str,
    /// When the audit ended.
    pub at: Timestamp,
}

/// The document. Lines that are ok are results of kind `pass`, those that could not be measured of kind `open`.
pub fn document(subject: &SarifSubject<'_>, lines: &[CheckLine]) -> Value {
    let rules = RULES.iter().map(
        |definition| json!({ "id": definition.id, "shortDescription": { "text": sentence(definition.requirement) } }),
    );
    let results: Vec<Value> = lines.iter().filter_map(|line| result(subject, line)).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "textnlp-deploy",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.collect::<Vec<_>>(),
            } },
            "invocations": [{ "executionSuccessful": true, "endTimeUtc": subject.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() }],
            "results": results,
        }],
    })
}

fn result(subject: &SarifSubject<'_>, line: &CheckLine) -> Option<Value> {
    let rule = line.rule?;
    let index = RULES.iter().position(|definition| definition.rule == rule)?;
    let (kind, level) = match line.mark {
        CheckResult::Well => ("pass", "none"),
        CheckResult::Warning => ("fail", "warning"),
        CheckResult::Problem => ("fail", "error"),
        CheckResult::Unknown => ("open", "none"),
    };
    let place = match &line.site {
        Some(site) => format!("{}/{site}", subject.environment),
        None => subject.environment.to_owned(),
    };
    let mut text = format!("{}: {}", line.name, line.says);
    if let Some(fix) = &line.fix {
        text += &format!("\nFix: {fix}");
    }
    // The same finding has the same fingerprint in later audits, also if its evidence has other numbers.
    let identity = hex::encode(Sha256::digest(format!("{}\n{place}\n{}", rule.id(), line.name)));
    Some(json!({
        "ruleId": rule.id(),
        "ruleIndex": index,
        "kind": kind,
        "level": level,
        "message": { "text": text },
        "locations": [{
            "physicalLocation": { "artifactLocation": { "uri": subject.file }, "region": { "startLine": 1 } },
            "logicalLocations": [{ "fullyQualifiedName": place, "kind": "resource" }],
        }],
        "partialFingerprints": { "textnlpFinding/v1": identity },
    }))
}

fn sentence(requirement: &str) -> String {
    let mut characters = requirement.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::Rule;

    #[test]
    fn every_line_is_a_result_of_its_rule() {
        let line = |rule, mark, says: &str| CheckLine {
            site: None,
            rule: Some(rule),
            name: "x".to_owned(),
            mark,
            says: says.to_owned(),
            fix: Some("do".to_owned()),
        };
        let lines = [
            line(Rule::Tls, CheckResult::Well, "a"),
            line(Rule::OpenPorts, CheckResult::Warning, "b"),
            line(Rule::BackupEncryption, CheckResult::Problem, "c"),
            line(Rule::BackupEncryption, CheckResult::Problem, "d"),
            line(Rule::AuditLog, CheckResult::Unknown, "e"),
        ];
        let at = "2026-11-25T01:02:03.5Z".parse().unwrap();
        let subject = SarifSubject { environment: "staging", file: "environments/staging.yaml", at };
        let made = document(&subject, &lines);
        let run = &made["runs"][0];
        assert_eq!(run["invocations"][0]["endTimeUtc"], "2026-11-25T01:02:03Z");
        let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
        let results = run["results"].as_array().unwrap();
        assert_eq!(rules.len(), RULES.len());
        let shown: Vec<(&str, &str)> =
            results.iter().map(|one| (one["kind"].as_str().unwrap(), one["level"].as_str().unwrap())).collect();
        let expected = [("pass", "none"), ("fail", "warning"), ("fail", "error"), ("fail", "error"), ("open", "none")];
        assert_eq!(shown, expected);
        for result in results {
            let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(rules[index]["id"], result["ruleId"]);
        }
        let print = |n: usize| &results[n]["partialFingerprints"]["textnlpFinding/v1"];
        assert_eq!(print(2), print(3), "the evidence does not change the identity");
        assert_ne!(print(1), print(2));
    }
}
