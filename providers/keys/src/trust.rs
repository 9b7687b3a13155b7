//! Certificates: the built-in authority, what it issues, and the inspection of any certificate file.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use sha2::{Digest, Sha256};
use textnlp_provider::Secret;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// An error with a certificate or its key.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A key is invalid or was not generated.
    #[error("the key cannot be used: {0}")]
    Key(rcgen::Error),
    /// A certificate was not issued.
    #[error("the certificate cannot be issued: {0}")]
    Issue(rcgen::Error),
    /// The text is not a certificate.
    #[error("it is not a certificate in PEM form: {0}")]
    Parse(String),
    /// The authority's key is not the one of its certificate: the authority is being rotated.
    #[error("the key of the authority does not match its certificate")]
    OtherAuthority,
    /// A date cannot be represented.
    #[error("the time of validity is out of range")]
    Time,
    /// The system returned no random numbers.
    #[error("no random numbers are available")]
    Random,
}

/// Certificates are backdated a little, because the clocks of clients differ.
const BACKDATE: Duration = Duration::from_secs(300);

/// The inspected properties of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// SHA-256 of the DER form, hex: the fingerprint.
    pub sha256: String,
    /// The start of its validity.
    pub not_before: Timestamp,
    /// The end of its validity.
    pub not_after: Timestamp,
    /// DNS names and addresses, sorted.
    pub names: Vec<String>,
    /// Whether the given authority signed it; `None` when none was given.
    pub signed: Option<bool>,
    /// Whether the given key belongs to it; `None` when none was given.
    pub key_matches: Option<bool>,
}

impl CertificateInfo {
    /// When two thirds of its life are over.
    pub fn renew_at(&self) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before);
        self.not_before.checked_add(life / 3 * 2).unwrap_or(self.not_after)
    }
}

/// A new ECDSA P-256 key, PKCS#8 PEM.
pub fn new_key() -> Result<Secret, CertificateError> {
    Ok(Secret::new(KeyPair::generate().map_err(CertificateError::Key)?.serialize_pem()))
}

/// A new RSA key for signing tokens, PKCS#8 PEM.
pub fn new_rsa_key() -> Result<Secret, CertificateError> {
    let key =
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).map_err(CertificateError::Key)?;
    Ok(Secret::new(key.serialize_pem()))
}

/// The public half of a private key, PEM.
pub fn public_pem(key: &Secret) -> Result<String, CertificateError> {
    Ok(key_pair(key)?.public_key_pem())
}

/// A self-signed CA certificate for servers with these names, PEM. Without names, it may certify any name.
pub fn authority(
    key: &Secret,
    subject: &str,
    names: &[String],
    days: u32,
    now: Timestamp,
) -> Result<String, CertificateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.distinguished_name.push(DnType::OrganizationName, "textnlp");
    // It signs leaves only: a stolen leaf key never becomes an authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    // A client that trusts a stolen authority trusts it for the names of this site only.
    let permitted_subtrees = permitted_subtrees_of(names);
    if !permitted_subtrees.is_empty() {
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }
    valid_until(&mut params, days_after(now, days)?, now)?;
    Ok(params.self_signed(&key_pair(key)?).map_err(CertificateError::Issue)?.pem())
}

/// A server's certificate signed by an authority, PEM.
pub fn issue(
    authority_pem: &str,
    authority_key: &Secret,
    key: &Secret,
    names: &[String],
    days: u32,
    now: Timestamp,
) -> Result<String, CertificateError> {
    // The first certificate is the authority in use; others are those that it replaced.
    let authority = first_certificate(authority_pem.as_bytes())?;
    let current = inspect(authority_pem.as_bytes(), None, Some(authority_key))?;
    if current.key_matches != Some(true) {
        return Err(CertificateError::OtherAuthority);
    }
    let issuer =
        Issuer::from_ca_cert_der(&authority.into(), key_pair(authority_key)?).map_err(CertificateError::Issue)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(CertificateError::Issue)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("textnlp", String::as_str));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let end = days_after(now, days)?;
    // Renewal is planned by the end of the certificate, so it must not end later than its authority. An authority that
    // has ended is reported elsewhere.
    let end = if current.not_after > now { end.min(current.not_after) } else { end };
    valid_until(&mut params, end, now)?;
    Ok(params.signed_by(&key_pair(key)?, &issuer).map_err(CertificateError::Issue)?.pem())
}

/// A request for a certificate with these names, DER.
pub(crate) fn request(key: &Secret, names: &[String]) -> Result<Vec<u8>, CertificateError> {
    let mut params = CertificateParams::new(names.to_vec()).map_err(CertificateError::Issue)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key_pair(key)?).map_err(CertificateError::Issue)?;
    Ok(request.der().as_ref().to_vec())
}

/// The certificate that answers a challenge TLS-ALPN-01 with the digest of its key authorization (RFC 8737, 3), after its
/// key, PEM.
pub(crate) fn challenge(name: &str, digest: &[u8]) -> Result<Secret, CertificateError> {
    let digest: &[u8; 32] =
        digest.try_into().map_err(|_| CertificateError::Parse("a digest has 32 bytes".to_owned()))?;
    let key = KeyPair::generate().map_err(CertificateError::Key)?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(CertificateError::Issue)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(CertificateError::Issue)?;
    Ok(Secret::new(key.serialize_pem() + &certificate.pem()))
}

/// A private key, PKCS#8 DER.
pub(crate) fn private_der(key: &Secret) -> Result<Vec<u8>, CertificateError> {
    Ok(key_pair(key)?.serialize_der())
}

/// Reads the first certificate of a PEM text and checks it against an authority and a key.
pub fn inspect(
    pem: &[u8],
    authority: Option<&[u8]>,
    key: Option<&Secret>,
) -> Result<CertificateInfo, CertificateError> {
    let der = first_certificate(pem)?;
    let certificate = parse(&der)?;
    let signed = match authority {
        None => None,
        Some(authority) => {
            let authority = first_certificate(authority)?;
            let authority = parse(&authority)?;
            let named = certificate.issuer() == authority.subject();
            Some(named && certificate.verify_signature(Some(authority.public_key())).is_ok())
        }
    };
    let key_matches = key.map(|key| {
        key_pair(key).is_ok_and(|pair| *pair.public_key_raw() == *certificate.public_key().subject_public_key.data)
    });
    let time = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|_| CertificateError::Time)
    };
    Ok(CertificateInfo {
        sha256: hex::encode(Sha256::digest(&der)),
        not_before: time(certificate.validity().not_before)?,
        not_after: time(certificate.validity().not_after)?,
        names: names_of(&certificate),
        signed,
        key_matches,
    })
}

/// Names in the form and order in which certificates are compared.
pub fn sorted_names(names: &[String]) -> Vec<String> {
    let mut sorted: Vec<String> = names
        .iter()
        .map(|name| {
            name.parse::<std::net::IpAddr>().map_or_else(|_| name.to_lowercase(), |address| address.to_string())
        })
        .collect();
    sorted.sort();
    sorted.dedup();
    sorted
}

/// The subtrees of names that a certificate for these names needs.
fn permitted_subtrees_of(names: &[String]) -> Vec<GeneralSubtree> {
    let subtree = |name: &String| match name.parse() {
        Ok(std::net::IpAddr::V4(address)) => GeneralSubtree::IpAddress(CidrSubnet::V4(address.octets(), [255; 4])),
        Ok(std::net::IpAddr::V6(address)) => GeneralSubtree::IpAddress(CidrSubnet::V6(address.octets(), [255; 16])),
        Err(_) => GeneralSubtree::DnsName(name.strip_prefix("*.").unwrap_or(name).to_owned()),
    };
    let mut subtrees: Vec<GeneralSubtree> = Vec::new();
    for subtree in names.iter().map(subtree) {
        if !subtrees.contains(&subtree) {
            subtrees.push(subtree);
        }
    }
    if subtrees.is_empty() {
        return subtrees;
    }
    // A kind of name without any subtree would be unrestricted. The reserved ones belong to no host.
    if !subtrees.iter().any(|subtree| matches!(subtree, GeneralSubtree::DnsName(_))) {
        subtrees.push(GeneralSubtree::DnsName("invalid".to_owned()));
    }
    if !subtrees.iter().any(|subtree| matches!(subtree, GeneralSubtree::IpAddress(_))) {
        subtrees.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [255; 4])));
    }
    subtrees
}

/// The first certificate of a PEM text, as PEM.
pub(crate) fn first_pem(pem: &[u8]) -> Result<String, CertificateError> {
    let text = std::str::from_utf8(pem).map_err(|error| CertificateError::Parse(error.to_string()))?;
    const END: &str = "-----END CERTIFICATE-----";
    let (begin, end) = (text.find("-----BEGIN CERTIFICATE-----"), text.find(END));
    match (begin, end) {
        (Some(begin), Some(end)) if begin < end => Ok(format!("{}\n", &text[begin..end + END.len()])),
        _ => Err(CertificateError::Parse("there is no CERTIFICATE block".to_owned())),
    }
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::Ipv4Addr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::Ipv6Addr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    });
    sorted_names(&names.collect::<Vec<_>>())
}

fn first_certificate(pem: &[u8]) -> Result<Vec<u8>, CertificateError> {
    for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
        let block = block.map_err(|error| CertificateError::Parse(error.to_string()))?;
        if block.label == "CERTIFICATE" {
            return Ok(block.contents);
        }
    }
    Err(CertificateError::Parse("there is no CERTIFICATE block".to_owned()))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|error| CertificateError::Parse(error.to_string()))
}

fn key_pair(key: &Secret) -> Result<KeyPair, CertificateError> {
    let text = key.expose_text().ok_or(CertificateError::Key(rcgen::Error::CouldNotParseKeyPair))?;
    KeyPair::from_pem(text).map_err(CertificateError::Key)
}

fn days_after(now: Timestamp, days: u32) -> Result<Timestamp, CertificateError> {
    now.checked_add(SignedDuration::from_hours(24 * i64::from(days))).map_err(|_| CertificateError::Time)
}

/// Sets the validity in rcgen's own date type, and a serial number.
fn valid_until(params: &mut CertificateParams, end: Timestamp, now: Timestamp) -> Result<(), CertificateError> {
    let begin = u64::try_from(now.as_second()).map_err(|_| CertificateError::Time)?.saturating_sub(BACKDATE.as_secs());
    let end = u64::try_from(end.as_second()).map_err(|_| CertificateError::Time)?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(begin);
    params.not_after = epoch + Duration::from_secs(end);
    // Random, because the serial that rcgen derives from the key would repeat when a key gets a second certificate.
    let mut serial = [0u8; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| CertificateError::Random)?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_verify_only_against_their_issuing_ca() {
        let now = Timestamp::now();
        let (ca_key, other_key, key) = (new_key().unwrap(), new_key().unwrap(), new_key().unwrap());
        let ca = authority(&ca_key, "a", &[], 30, now).unwrap();
        let other = authority(&other_key, "a", &[], 30, now).unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let leaf = issue(&ca, &ca_key, &key, &names, 9, now).unwrap();
        let seen = inspect(leaf.as_bytes(), Some(ca.as_bytes()), Some(&key)).unwrap();
        assert_eq!((seen.signed, seen.key_matches), (Some(true), Some(true)));
        assert_eq!(seen.names, sorted_names(&names));
        let other_ca = inspect(leaf.as_bytes(), Some(other.as_bytes()), Some(&ca_key)).unwrap();
        assert_eq!((other_ca.signed, other_ca.key_matches), (Some(false), Some(false)));
        let days = seen.renew_at().duration_since(now).as_hours() / 24;
        assert!((5..=6).contains(&days), "two thirds of nine days, not {days}");
    }

    #[test]
    fn certificates_for_the_same_key_have_different_serials() {
        let now = Timestamp::now();
        let (ca_key, key) = (new_key().unwrap(), new_key().unwrap());
        let ca = authority(&ca_key, "a", &[], 30, now).unwrap();
        let serial = || {
            let pem = issue(&ca, &ca_key, &key, &["localhost".to_owned()], 9, now).unwrap();
            let der = first_certificate(pem.as_bytes()).unwrap();
            parse(&der).unwrap().raw_serial_as_string()
        };
        assert_ne!(serial(), serial());
    }

    #[test]
    fn authority_names_are_critical_constraints_of_both_kinds() {
        let (key, now) = (new_key().unwrap(), Timestamp::now());
        let subtrees = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let der = first_certificate(authority(&key, "a", &names, 30, now).unwrap().as_bytes()).unwrap();
            let parsed = parse(&der).unwrap();
            let Some(constraints) = parsed.name_constraints().unwrap() else { return Vec::new() };
            assert!(constraints.critical);
            let permitted = constraints.value.permitted_subtrees.iter().flatten();
            permitted.map(|subtree| subtree.base.to_string()).collect()
        };
        assert_eq!(subtrees(&[]), [] as [String; 0]);
        assert_eq!(subtrees(&["*.texts.example", "texts.example", "127.0.0.1"]).len(), 2, "one for both");
        assert_eq!(subtrees(&["texts.example"]).len(), 2, "and no address");
        assert_eq!(subtrees(&["::1"]).len(), 2, "and no DNS name");
    }

    #[test]
    fn certificate_ends_with_its_authority_at_the_latest() {
        let now = Timestamp::now();
        let (ca_key, key) = (new_key().unwrap(), new_key().unwrap());
        let ca = authority(&ca_key, "a", &[], 5, now).unwrap();
        let leaf = issue(&ca, &ca_key, &key, &["localhost".to_owned()], 9, now).unwrap();
        let end = |pem: &str| inspect(pem.as_bytes(), None, None).unwrap().not_after;
        assert_eq!(end(&leaf), end(&ca));
    }

    #[test]
    fn certificate_is_not_issued_with_the_key_of_another_authority() {
        let now = Timestamp::now();
        let (old_key, new_ca_key, key) = (new_key().unwrap(), new_key().unwrap(), new_key().unwrap());
        let old = authority(&old_key, "a", &[], 30, now).unwrap();
        let bundle = authority(&new_ca_key, "a", &[], 30, now).unwrap() + &old;
        let names = ["localhost".to_owned()];
        let refused = issue(&bundle, &old_key, &key, &names, 9, now);
        assert!(matches!(refused, Err(CertificateError::OtherAuthority)), "{refused:?}");
        let leaf = issue(&bundle, &new_ca_key, &key, &names, 9, now).unwrap();
        assert_eq!(inspect(leaf.as_bytes(), Some(bundle.as_bytes()), None).unwrap().signed, Some(true));
        let first = first_pem(bundle.as_bytes()).unwrap();
        assert_eq!(inspect(first.as_bytes(), None, Some(&new_ca_key)).unwrap().key_matches, Some(true));
        assert!(inspect(first.as_bytes(), None, Some(&old_key)).unwrap().key_matches == Some(false));
    }

    #[test]
    fn invalid_certificates_are_refused() {
        for bad in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(inspect(bad.as_bytes(), None, None).is_err(), "{bad}");
        }
    }
}
