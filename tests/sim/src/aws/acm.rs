//! Certificate Manager: public certificates that records of Route 53 validate.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::key_values::KeyValues;
use super::route53::Route53;
use crate::{Behaviour, Call, Fault, Service, Source, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "acm",
    model: "acm",
    operations: &[
        ("AddTagsToCertificate", |world, call| TAGS.set(world, call)),
        ("DeleteCertificate", delete),
        ("DescribeCertificate", describe),
        ("ListTagsForCertificate", |world, call| TAGS.list(world, call)),
        ("RemoveTagsFromCertificate", remove_tags),
        ("RequestCertificate", request),
    ],
    quotas: &[],
    ledger: LEDGER,
};

const fn row(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "acm", what, source }
}

const DNS: Source = Source::Documentation("https://docs.aws.amazon.com/acm/latest/userguide/dns-validation.html");

const LEDGER: &[Behaviour] = &[
    row(
        "all certificates of a name in an account have the same validation record, and a name and its wildcard too",
        DNS,
    ),
    row("a certificate is issued once the validation records of all of its names are there", DNS),
    row(
        "it takes five seconds until a validation record is stated, and two minutes until it is found",
        Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
    ),
    row(
        "a repeated idempotency token answers the first certificate",
        Source::Documentation("https://docs.aws.amazon.com/acm/latest/APIReference/API_RequestCertificate.html"),
    ),
    row(
        "it does so for longer than an hour",
        Source::LeftOut("real tokens end after an hour: a later repetition is a new request there"),
    ),
    row("a repeated idempotency token with other names is refused with InvalidParameterException", Source::Assumed),
    row(
        "a certificate that a load balancer uses is not deleted: ResourceInUseException",
        Source::Documentation("https://docs.aws.amazon.com/acm/latest/APIReference/API_DeleteCertificate.html"),
    ),
    row(
        "a new certificate is read at once",
        Source::LeftOut("ACM shows it some seconds later; the driver waits for its validation records anyway"),
    ),
];

const TAGS: KeyValues = KeyValues { arn: "CertificateArn", tags: "Tags", keys: "TagKeys", missing: no_certificate };

/// What ACM holds in a region.
#[derive(Default)]
pub struct Acm {
    /// The certificates by their ARNs.
    pub certificates: BTreeMap<String, Certificate>,
    /// The label of the validation record and its value, by name.
    validations: BTreeMap<String, (String, String)>,
}

/// A certificate.
pub struct Certificate {
    /// Its names; the first one is its domain name.
    pub names: Vec<String>,
    /// The ARNs of the load balancers that use it.
    pub used_by: BTreeSet<String>,
    created: Timestamp,
    /// When its validation records are stated.
    stated: Timestamp,
    /// When it is issued, once its records were found.
    issued: Option<Timestamp>,
}

fn no_certificate(arn: &str) -> Fault {
    Fault::new("ResourceNotFoundException", format!("Could not find certificate {arn}."))
}

fn request(world: &mut World, call: &Call) -> Result<Value, Fault> {
    if call.str("ValidationMethod") != Some("DNS") {
        return Err(Fault::new("InvalidParameterException", "Only validation by DNS is simulated."));
    }
    let mismatch = Fault::new("InvalidParameterException", "The idempotency token belongs to another request.");
    let arn = world.once(call, "IdempotencyToken", mismatch, |world| {
        let mut names = vec![call.text("DomainName").to_owned()];
        for name in call.texts("SubjectAlternativeNames") {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        let state = world.state::<Acm>(&call.scope());
        for name in &names {
            let new =
                || (format!("_{}", call.random.hex(32)), format!("_{}.acm-validations.aws.", call.random.hex(32)));
            state.validations.entry(plain(name)).or_insert_with(new);
        }
        let arn = call.arn(&format!("certificate/{}", call.random.uuid()));
        let stated = call.due(Duration::from_secs(5));
        let certificate = Certificate { names, used_by: BTreeSet::new(), created: call.now, stated, issued: None };
        state.certificates.insert(arn.clone(), certificate);
        world.tags.set(&arn, TAGS.pairs(call), call.visible());
        Ok(arn)
    })?;
    Ok(json!({ "CertificateArn": arn }))
}

/// The name whose owner is asked for a name.
fn plain(name: &str) -> String {
    name.trim_start_matches("*.").to_owned()
}

fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("CertificateArn");
    let records: BTreeMap<String, String> = {
        let zones = world.state::<Route53>(&call.global()).zones.values();
        let all = zones.filter(|zone| !zone.private).flat_map(|zone| zone.records.values());
        let all = all.filter(|record| record["Type"] == "CNAME");
        let text = |value: &Value| value.as_str().unwrap_or_default().trim_end_matches('.').to_owned();
        all.map(|record| (text(&record["Name"]), text(&record["ResourceRecords"][0]["Value"]))).collect()
    };
    let state = world.state::<Acm>(&call.scope());
    let Acm { certificates, validations } = state;
    let certificate = certificates.get_mut(arn).ok_or_else(|| no_certificate(arn))?;
    let validation = |name: &str| {
        let (label, value) = &validations[&plain(name)];
        (format!("{label}.{}", plain(name)), value.clone())
    };
    let is_found = |name: &String| {
        let (record, value) = validation(name);
        records.get(&record).is_some_and(|found| *found == value.trim_end_matches('.'))
    };
    if certificate.issued.is_none() && call.now >= certificate.stated && certificate.names.iter().all(is_found) {
        certificate.issued = Some(call.due(Duration::from_secs(120)));
    }
    let is_issued = certificate.issued.is_some_and(|issued| call.now >= issued);
    let options: Vec<Value> = certificate
        .names
        .iter()
        .map(|name| {
            let (record, value) = validation(name);
            let mut option = json!({
                "DomainName": name, "ValidationDomain": name, "ValidationMethod": "DNS",
                "ValidationStatus": if is_issued { "SUCCESS" } else { "PENDING_VALIDATION" },
            });
            if call.now >= certificate.stated {
                option["ResourceRecord"] = json!({ "Name": format!("{record}."), "Type": "CNAME", "Value": value });
            }
            option
        })
        .collect();
    Ok(json!({ "Certificate": {
        "CertificateArn": arn,
        "DomainName": certificate.names[0],
        "SubjectAlternativeNames": certificate.names,
        "DomainValidationOptions": options,
        "CreatedAt": timestamp(certificate.created),
        "Status": if is_issued { "ISSUED" } else { "PENDING_VALIDATION" },
        "Type": "AMAZON_ISSUED",
        "KeyAlgorithm": "RSA_2048",
        "InUseBy": certificate.used_by,
    } }))
}

fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("CertificateArn");
    let certificates = &mut world.state::<Acm>(&call.scope()).certificates;
    let certificate = certificates.get(arn).ok_or_else(|| no_certificate(arn))?;
    if !certificate.used_by.is_empty() {
        return Err(Fault::new("ResourceInUseException", format!("Certificate {arn} is in use.")));
    }
    certificates.remove(arn);
    world.tags.forget(arn);
    Ok(json!({}))
}

fn remove_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("CertificateArn");
    if !world.tags.has(arn) {
        return Err(no_certificate(arn));
    }
    let keys: Vec<String> = TAGS.pairs(call).into_iter().map(|(key, _)| key).collect();
    world.tags.remove(arn, keys.iter().map(String::as_str));
    Ok(json!({}))
}
