//! The controls of each framework, and their evidence.

use textnlp_orchestrator::environment::model::Framework;

use super::Control;
use crate::security::Rule::{
    self, AlertReceivers, Anonymous, ApiKeys, ApiKeysRequired, AuditLog, BackupAge, BackupEncryption, BundleSignature,
    Certificates, ChangeRecord, Credentials, Headers, Images, NetworkPolicies, OpenPorts, Pods, RestoreTest, Retention,
    Roles, SecretFiles, ServiceUser, StateFiles, Tls, TlsVersions, Vulnerabilities,
};

const fn measured(id: &'static str, title: &'static str, rules: &'static [Rule]) -> Control {
    Control { id, title, rules, yours: None }
}

const fn both(id: &'static str, title: &'static str, rules: &'static [Rule], yours: &'static str) -> Control {
    Control { id, title, rules, yours: Some(yours) }
}

const fn yours(id: &'static str, title: &'static str, what: &'static str) -> Control {
    Control { id, title, rules: &[], yours: Some(what) }
}

/// Regulation (EU) 2016/679, by article.
const GDPR: &[Control] = &[
    yours(
        "Art. 5(1)(c)",
        "data minimisation",
        "which texts your clients send; `server.pii` masks or refuses personal data that it finds in requests",
    ),
    measured("Art. 5(1)(e)", "storage limitation", &[Retention]),
    measured("Art. 5(1)(f)", "integrity and confidentiality", &[Tls, ApiKeysRequired, StateFiles, SecretFiles]),
    yours("Art. 6", "lawfulness", "the legal basis of each processing"),
    yours("Art. 12-14", "information of data subjects", "the privacy notice of your service"),
    yours(
        "Art. 15-22",
        "rights of data subjects",
        "answers to requests; the service stores counts by key and no texts, except open tickets, which are encrypted, and files of batches, if \
         `server.batch` is on",
    ),
    measured("Art. 25", "data protection by design and by default", &[ApiKeysRequired, OpenPorts, NetworkPolicies]),
    yours("Art. 28", "processors", "contracts with the operators of your machines, clusters and clouds"),
    yours("Art. 30", "records of processing", "the record of your processing activities"),
    measured("Art. 32(1)(a)", "encryption", &[Tls, TlsVersions, BackupEncryption]),
    measured(
        "Art. 32(1)(b)",
        "confidentiality, integrity, availability and resilience",
        &[Anonymous, ServiceUser, OpenPorts, Vulnerabilities, AlertReceivers],
    ),
    measured("Art. 32(1)(c)", "restoring availability and access", &[BackupAge, RestoreTest]),
    measured("Art. 32(1)(d)", "regular tests of the measures", &[RestoreTest, Vulnerabilities]),
    both(
        "Art. 33-34",
        "notification of breaches",
        &[AuditLog, AlertReceivers],
        "the notification of the authority within 72 hours, and of data subjects",
    ),
    yours("Art. 35", "impact assessment", "the assessment, if the processing is of high risk"),
    yours("Art. 44-49", "transfers to third countries", "the basis of transfers to the regions of this deployment"),
];

/// 45 CFR Part 164, Subpart C (the Security Rule).
const HIPAA: &[Control] = &[
    both("164.308(a)(1)(ii)(A)", "risk analysis", &[Vulnerabilities], "the risk analysis of your organization"),
    both("164.308(a)(1)(ii)(D)", "review of activity", &[AuditLog], "the regular review of `audit export`"),
    yours("164.308(a)(2)", "assigned responsibility", "the name of the security official"),
    yours("164.308(a)(3)", "workforce security", "authorization and termination of your staff"),
    measured("164.308(a)(4)", "access management", &[ApiKeys, Roles]),
    measured("164.308(a)(5)(ii)(B)", "protection from malicious software", &[Vulnerabilities, Images, BundleSignature]),
    measured("164.308(a)(5)(ii)(D)", "password management", &[Credentials, ApiKeys]),
    both("164.308(a)(6)", "security incidents", &[AlertReceivers], "the response plan and its records"),
    measured("164.308(a)(7)(ii)(A)", "data backup plan", &[BackupAge, BackupEncryption]),
    measured("164.308(a)(7)(ii)(B)-(D)", "disaster recovery plan, with tests", &[RestoreTest]),
    yours("164.308(a)(8)", "evaluation", "the periodic evaluation, for instance of this report"),
    yours("164.308(b)", "business associates", "agreements with the operators of your machines, clusters and clouds"),
    yours("164.310", "physical safeguards", "the protection of machines, media and workstations"),
    measured("164.312(a)(1)", "access control", &[ApiKeysRequired, Anonymous, SecretFiles, StateFiles]),
    both("164.312(a)(2)(iv)", "encryption at rest", &[BackupEncryption], "encrypted disks for state and databases"),
    measured("164.312(b)", "audit controls", &[AuditLog, ChangeRecord]),
    measured("164.312(c)(1)", "integrity", &[StateFiles, Images, BundleSignature]),
    measured("164.312(d)", "authentication", &[Anonymous, Credentials]),
    measured("164.312(e)(1)", "transmission security", &[Tls, TlsVersions, Certificates, NetworkPolicies]),
    yours("164.316(b)(2)(i)", "retention of documentation", "this report and its evidence, for six years"),
];

/// AICPA Trust Services Criteria of 2017, with the points of focus of 2022: security, availability, confidentiality.
const SOC2: &[Control] = &[
    yours("CC1-CC5", "control environment, communication, risks, monitoring", "the policies of your organization"),
    measured(
        "CC6.1",
        "logical access",
        &[ApiKeysRequired, Anonymous, SecretFiles, StateFiles, Credentials, BackupEncryption],
    ),
    both("CC6.2-CC6.3", "registration and roles", &[ApiKeys, Roles], "the review of who has access"),
    yours("CC6.4", "physical access", "the protection of machines"),
    both("CC6.5", "disposal", &[Retention], "the disposal of disks"),
    measured("CC6.6", "threats from outside", &[OpenPorts, NetworkPolicies, Headers]),
    measured("CC6.7", "transmission", &[Tls, TlsVersions, Certificates]),
    measured("CC6.8", "unauthorized software", &[Images, BundleSignature, Pods, ServiceUser]),
    measured("CC7.1", "detection of vulnerabilities", &[Vulnerabilities]),
    measured("CC7.2", "monitoring", &[AlertReceivers, AuditLog]),
    yours("CC7.3-CC7.4", "incidents", "the response plan and its records"),
    measured("CC7.5", "recovery", &[RestoreTest]),
    measured("CC8.1", "change management", &[ChangeRecord]),
    yours("CC9", "risk mitigation", "insurance, vendors and business continuity"),
    yours("A1.1", "capacity", "the review of `performance report` and of limits"),
    measured("A1.2", "backups", &[BackupAge, BackupEncryption]),
    measured("A1.3", "recovery tests", &[RestoreTest]),
    both(
        "C1.1-C1.2",
        "confidential information",
        &[Retention, BackupEncryption],
        "the classification of what your clients send",
    ),
];

/// The controls of a framework, in the order of the report.
pub fn controls(framework: Framework) -> &'static [Control] {
    match framework {
        Framework::Gdpr => GDPR,
        Framework::Hipaa => HIPAA,
        Framework::Soc2 => SOC2,
    }
}
