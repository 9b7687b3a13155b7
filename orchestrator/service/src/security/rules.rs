//! The rules of `security audit`. Compliance reports take their evidence from its lines.

use serde::Serialize;

/// What one line of an audit is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The files of the state.
    StateFiles,
    /// The files of the secrets.
    SecretFiles,
    /// The system user of the programs.
    ServiceUser,
    /// TLS of the clients' port.
    Tls,
    /// The TLS versions that the clients' port accepts.
    TlsVersions,
    /// The security headers of responses.
    Headers,
    /// Requests without a valid key.
    Anonymous,
    /// The web application firewall.
    Firewall,
    /// API keys are required.
    ApiKeysRequired,
    /// Certificates.
    Certificates,
    /// Generated credentials.
    Credentials,
    /// API keys.
    ApiKeys,
    /// Ends of API keys.
    KeyEnds,
    /// Waivers of gates.
    Waivers,
    /// Known vulnerabilities.
    Vulnerabilities,
    /// Container images.
    Images,
    /// Network policies.
    NetworkPolicies,
    /// Rights of service accounts in a cluster.
    Roles,
    /// Privileges of pods.
    Pods,
    /// Open ports.
    OpenPorts,
    /// Encryption of backups.
    BackupEncryption,
    /// Age of backups.
    BackupAge,
    /// Restore rehearsals.
    RestoreTest,
    /// The audit log.
    AuditLog,
    /// Retention of usage records and audit events.
    Retention,
    /// Receivers of alerts.
    AlertReceivers,
    /// The journal of changes.
    ChangeRecord,
    /// The signature of an installed bundle.
    BundleSignature,
}

/// A rule with its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleDefinition {
    /// The rule.
    pub rule: Rule,
    /// Its identifier in documents: `open-ports`.
    pub id: &'static str,
    /// What holds if a line of it is ok.
    pub requirement: &'static str,
}

const fn row(rule: Rule, id: &'static str, requirement: &'static str) -> RuleDefinition {
    RuleDefinition { rule, id, requirement }
}

/// All rules, in the order of a report.
pub const RULES: [RuleDefinition; 28] = [
    row(Rule::StateFiles, "state-files", "the state belongs to the operator; no other user can change it"),
    row(Rule::SecretFiles, "secret-files", "only the owner can read the files of secrets"),
    row(Rule::ServiceUser, "service-user", "the programs of the service do not run as root"),
    row(Rule::Tls, "tls", "clients connect with TLS"),
    row(Rule::TlsVersions, "tls-versions", "the service refuses TLS 1.1 and offers TLS 1.2 or later"),
    row(Rule::Headers, "headers", "responses have the headers that protect browsers and caches"),
    row(Rule::Anonymous, "anonymous", "requests without a valid key are refused"),
    row(Rule::Firewall, "firewall", "the web application firewall blocks an attack, where the environment has one"),
    row(Rule::ApiKeysRequired, "api-keys-required", "requests need a valid key or token"),
    row(Rule::Certificates, "certificates", "certificates are valid for more than a week"),
    row(Rule::Credentials, "credentials", "generated credentials are not older than a year"),
    row(Rule::ApiKeys, "api-keys", "API keys have an end, or are not older than a year"),
    row(Rule::KeyEnds, "key-ends", "no API key ends within two weeks"),
    row(Rule::Waivers, "waivers", "no check of a gate is waived, and no phase was entered without evidence"),
    row(Rule::Vulnerabilities, "vulnerabilities", "no known vulnerability is in what runs, by current advisories"),
    row(Rule::Images, "images", "images are pinned by digest"),
    row(Rule::NetworkPolicies, "network-policies", "pods accept only the connections that the service needs"),
    row(Rule::Roles, "roles", "service accounts have no right to all resources and cannot read all secrets"),
    row(Rule::Pods, "pods", "containers run without root, privileges and writable root file systems"),
    row(Rule::OpenPorts, "open-ports", "only the ports of the clients are open to other machines"),
    row(Rule::BackupEncryption, "backup-encryption", "backups are encrypted"),
    row(Rule::BackupAge, "backup-age", "the newest backup is not older than the schedule allows"),
    row(Rule::RestoreTest, "restore-test", "a backup was restored and compared within 90 days"),
    row(Rule::AuditLog, "audit-log", "administrative acts are recorded with who, what, when and from where"),
    row(Rule::Retention, "retention", "usage records and audit events older than the configured time are deleted"),
    row(Rule::AlertReceivers, "alert-receivers", "alerts are sent to a person"),
    row(Rule::ChangeRecord, "change-record", "each change of the deployment is recorded, with its author"),
    row(Rule::BundleSignature, "bundle-signature", "the installed bundle is signed by a trusted key"),
];

impl Rule {
    /// Its definition.
    pub fn definition(self) -> &'static RuleDefinition {
        let [first, ..] = &RULES;
        RULES.iter().find(|definition| definition.rule == self).unwrap_or(first)
    }

    /// Its identifier in documents.
    pub fn id(self) -> &'static str {
        self.definition().id
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_rule_has_one_definition_with_the_identifier_of_its_documents() {
        let rules: BTreeSet<Rule> = RULES.iter().map(|definition| definition.rule).collect();
        assert_eq!(rules.len(), RULES.len());
        assert_eq!(rules.last(), Some(&Rule::BundleSignature), "the last variant has no row");
        for RuleDefinition { rule, id, .. } in RULES {
            assert_eq!(serde_json::to_value(rule).unwrap(), id);
            assert_eq!(rule.definition().rule, rule);
        }
    }
}
