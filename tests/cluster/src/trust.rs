//! Keys and certificates of a control plane: one authority for servers and clients.

use base64::Engine;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The certificate authority of a cluster.
pub(crate) struct Authority {
    pem: String,
    key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = new_key();
        let mut params = CertificateParams::default();
        params.distinguished_name = named("textnlp-tests", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let pem = params.self_signed(&key).expect("sign an authority").pem();
        Self { pem, key: key.serialize_pem() }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.clone()
    }

    /// Issues a server certificate and its key.
    pub(crate) fn server(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names for a certificate");
        params.distinguished_name = named("server", &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// Issues a client certificate and its key: the common name is the user, the organisations are the groups.
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(user, groups);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> (String, String) {
        let own = KeyPair::from_pem(&self.key).expect("read our own key");
        let issuer = Issuer::from_ca_cert_pem(&self.pem, own).expect("read our own authority");
        let key = new_key();
        (params.signed_by(&key, &issuer).expect("sign a certificate").pem(), key.serialize_pem())
    }
}

/// The key pair for service account tokens: signing key and verification key.
pub(crate) fn signing_key() -> (String, String) {
    let key = new_key();
    (key.serialize_pem(), key.public_key_pem())
}

pub(crate) fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("make a key")
}

fn named(name: &str, organisations: &[&str]) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    for organisation in organisations {
        full.push(DnType::OrganizationName, *organisation);
    }
    full
}
