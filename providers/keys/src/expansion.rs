//! Components → resources. Pure: paths follow from the names.

use serde::Serialize;
use serde_json::json;
use textnlp_provider::component::{Certificate, ComponentSpec, ExternalSecret, Secrets};
use textnlp_provider::settings::TlsMode;
use textnlp_provider::{
    CloudId, Component, ComponentName, KindName, Need, OutputRef, Ownership, Problem, Problems, ResourceId, SecretName,
    Site, Spec, Wanted,
};

use crate::layout::FOLDERS;
use crate::spec::{AuthoritySpec, DirectorySpec, SecretSpec};
use crate::table::KeyKind;
use crate::{Options, trust};

/// The component whose folder contains the site.
pub const NETWORK: &str = "network";

/// Clients trust the authority by hand: it must outlive many certificates.
const AUTHORITY_DAYS: u32 = 1825;
/// The longest lifetime of a certificate. It ends with its authority.
const CERTIFICATE_DAYS_MAX: u32 = 1825;

/// The certificate of the authority that clients trust.
pub const CA_FILE: &str = "certs/ca.pem";
/// The certificate that clients see.
pub const CERTIFICATE_FILE: &str = "certs/server.pem";
/// Its private key.
pub const KEY_FILE: &str = "certs/server-key.pem";
/// The name of the component whose certificate clients see.
const CERTIFICATE: &str = "certificate";

/// The resources of one component, while they are made.
pub struct Expansion<'a> {
    /// The component.
    pub component: &'a Component,
    /// Its site.
    pub site: &'a Site,
    wanted: Vec<Wanted>,
    problems: Vec<Problem>,
}

impl<'a> Expansion<'a> {
    /// Without any resource.
    pub fn new(component: &'a Component, site: &'a Site) -> Self {
        Self { component, site, wanted: Vec::new(), problems: Vec::new() }
    }

    /// The resources, or all problems.
    pub fn finish(self) -> Result<Vec<Wanted>, Problems> {
        if self.problems.is_empty() { Ok(self.wanted) } else { Err(Problems(self.problems)) }
    }

    /// Expands a component of which [`Keys`](crate::Keys) owns the resources: the site's folder, secrets, certificates.
    pub(crate) fn keys(&mut self, options: &Options) {
        match &self.component.part {
            ComponentSpec::Network(_) => self.directory(),
            ComponentSpec::Secrets(secrets) => self.secrets(secrets),
            ComponentSpec::Certificate(certificate) => self.certificate(certificate, options.hostname.as_deref()),
            _ => {}
        }
    }

    fn directory(&mut self) {
        let folders = FOLDERS.iter().map(|folder| (*folder).to_owned()).collect();
        let spec = DirectorySpec { folders, tags: self.site.tags.clone() };
        self.want(self.id(), KeyKind::Directory, &spec, []);
    }

    fn secrets(&mut self, secrets: &Secrets) {
        for (name, recipe) in &secrets.generate {
            let Some(id) = self.part(name) else { continue };
            let is_shared = secrets.shared.contains(name);
            let kept_as = if is_shared { SecretName(format!("shared/{name}")) } else { self.secret_name(name) };
            let spec = SecretSpec { name: kept_as, recipe: Some(recipe.clone()), given: None, shared: is_shared };
            self.want_protected(id, KeyKind::Secret, &spec, [self.network_id()]);
        }
        for (name, given) in &secrets.given {
            let Some(id) = self.part(name) else { continue };
            self.given_secret(id, name, given);
        }
    }

    fn certificate(&mut self, certificate: &Certificate, hostname: Option<&str>) {
        let (Some(authority), Some(leaf)) = (self.part("authority"), self.part("leaf")) else { return };
        match (certificate.mode, &self.component.existing) {
            (TlsMode::Existing, Some(file)) => self.existing_certificate(leaf, file.clone()),
            (TlsMode::Existing, None) => {
                let fix = "set `tls: { existing: /path/to/certificate.pem }`; put its key next to it, with the extension `.key`";
                self.problem("existing", "no certificate file is set", fix);
            }
            (TlsMode::LocalCa, None) => self.local_authority(certificate, hostname, authority, leaf),
            // Commands and other sites connect by addresses, which the public authority does not certify.
            (TlsMode::Acme, None) if hostname.is_some() => self.local_authority(certificate, hostname, authority, leaf),
            (mode @ (TlsMode::LocalCa | TlsMode::Acme), Some(_)) => {
                self.problem("existing", format!("it contradicts `{mode}`"), "set `mode: existing`")
            }
            (mode, _) => {
                let cause = format!("`mode: {mode}` is supported only for programs on this machine");
                self.problem("mode", cause, "set `tls: { mode: local-ca }`, or `existing` with your own certificate");
            }
        }
    }

    fn existing_certificate(&mut self, leaf: ResourceId, file: CloudId) {
        if !file.as_str().starts_with('/') {
            return self.problem("existing", format!("`{file}` is not an absolute path"), "write the absolute path");
        }
        self.want(leaf, KeyKind::Certificate, &json!({ "existing": file.as_str() }), []);
        if let Some(last) = self.wanted.last_mut() {
            last.ownership = Ownership::External(file);
        }
    }

    fn local_authority(
        &mut self,
        certificate: &Certificate,
        hostname: Option<&str>,
        authority: ResourceId,
        leaf: ResourceId,
    ) {
        if certificate.days == 0 || certificate.days > CERTIFICATE_DAYS_MAX {
            let cause = format!("a certificate cannot be valid for {} days", certificate.days);
            self.problem("days", cause, format!("choose 1 to {CERTIFICATE_DAYS_MAX} days"));
        }
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.extend(hostname.filter(|name| is_dns_name(name)).map(str::to_owned));
        for name in &certificate.names {
            let usable = is_dns_name(name) || name.parse::<std::net::IpAddr>().is_ok();
            if usable {
                names.push(name.clone());
            } else {
                self.problem("names", format!("`{name}` is neither a DNS name nor an address"), "correct it");
            }
        }
        let subject = format!("textnlp {} {}", self.site.environment, self.site.name);
        // The site's other certificate is stored beside that of its clients, with an authority of its own.
        let name = self.component.name.as_str();
        let (ca_file, certificate_file, key_file, prefix) = match name {
            CERTIFICATE => (CA_FILE.to_owned(), CERTIFICATE_FILE.to_owned(), KEY_FILE.to_owned(), String::new()),
            other => (
                format!("certs/{other}-ca.pem"),
                format!("certs/{other}.pem"),
                format!("certs/{other}-key.pem"),
                format!("{other}-"),
            ),
        };
        let key = self.secret_name(&format!("{prefix}ca-key"));
        let names = trust::sorted_names(&names);
        let spec = AuthoritySpec {
            subject,
            days: AUTHORITY_DAYS,
            names: names.clone(),
            certificate_file: ca_file.clone(),
            key,
        };
        self.want_protected(authority.clone(), KeyKind::Authority, &spec, [self.network_id()]);
        let mut spec = json!({
            "names": names,
            "days": certificate.days,
            "certificate_file": certificate_file,
            "key_file": key_file,
            "ca_file": ca_file,
            "authority": OutputRef::new(authority.clone(), "sha256"),
            "authority_key": OutputRef::new(authority.clone(), "secret"),
        });
        if hostname.is_none() {
            spec["kept"] = json!(self.secret_name(&format!("{prefix}tls")));
        }
        self.want(leaf, KeyKind::Certificate, &spec, [authority]);
    }

    /// A user-provided secret.
    pub fn given_secret(&mut self, id: ResourceId, name: &str, given: &ExternalSecret) {
        let spec = SecretSpec { name: self.secret_name(name), recipe: None, given: Some(given.clone()), shared: false };
        self.want(id, KeyKind::Secret, &spec, [self.network_id()]);
    }

    /// The id of the component's only resource.
    pub fn id(&self) -> ResourceId {
        ResourceId::of(&self.site.name, &self.component.name)
    }

    /// `SITE/COMPONENT/PART`; a part that is not a label is a problem.
    pub fn part(&mut self, part: &str) -> Option<ResourceId> {
        self.part_of(&self.component.name, part)
    }

    /// A part of another component.
    pub fn part_of(&mut self, component: &ComponentName, part: &str) -> Option<ResourceId> {
        match ResourceId::part(&self.site.name, component, part) {
            Ok(id) => Some(id),
            Err(error) => {
                self.problem(part, error.to_string(), "rename it");
                None
            }
        }
    }

    /// The site's folder.
    pub fn network_id(&self) -> ResourceId {
        let network = ComponentName::new(NETWORK).expect("the constant is a label");
        ResourceId::of(&self.site.name, &network)
    }

    fn secret_name(&self, name: &str) -> SecretName {
        SecretName(format!("{}/{name}", self.site.name))
    }

    /// Adds a problem of a field of the component.
    pub fn problem(&mut self, field: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let location = format!("{}/{}", self.site.name, self.component.name);
        self.problems.push(Problem::new(format!("{location}: {field}"), cause, fix));
    }

    /// Adds a resource. It also needs every resource whose outputs its spec refers to.
    pub fn want(
        &mut self,
        id: ResourceId,
        kind: impl Into<KindName>,
        spec: &impl Serialize,
        needs: impl IntoIterator<Item = ResourceId>,
    ) {
        let spec = Spec::of(spec);
        let mut needs: Vec<Need> = needs
            .into_iter()
            .chain(spec.outputs_needed().iter().map(|output| output.resource.clone()))
            .map(Need::on)
            .collect();
        needs.sort();
        needs.dedup();
        self.wanted.push(Wanted {
            id,
            kind: kind.into(),
            site: self.site.name.clone(),
            via: None,
            spec,
            needs,
            ownership: Ownership::Ours,
            protected: false,
        });
    }

    /// Adds a resource that is protected where the site protects data.
    pub fn want_protected(
        &mut self,
        id: ResourceId,
        kind: impl Into<KindName>,
        spec: &impl Serialize,
        needs: impl IntoIterator<Item = ResourceId>,
    ) {
        self.want(id, kind, spec, needs);
        if let Some(last) = self.wanted.last_mut() {
            last.protected = self.site.protect_data;
        }
    }
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253 && rest.split('.').all(label) && rest.parse::<std::net::Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names() {
        for good in ["localhost", "a.example.com", "*.example.com", "host-1"] {
            assert!(is_dns_name(good), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a b", "ü.de", "*.*.de", "1.2.3.4", &"a".repeat(64)] {
            assert!(!is_dns_name(bad), "{bad}");
        }
    }
}
