//! The certificate authorities and proxies of commands.

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::FetchOptions;
use textnlp_net::client::ProxySettings;
use textnlp_net::trust::{TrustError, TrustRoots};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::{Proxy, UrlSource};

use crate::clouds;

/// The trust roots for a service. `own` is the service's own authority and then the only one. Otherwise these are the
/// public authorities, those of this machine, and `network.private_ca` or else `TEXTNLP_CA_FILE`.
pub fn trust(own: Option<&Utf8Path>, environment: Option<&Environment>) -> anyhow::Result<TrustRoots> {
    match own {
        Some(file) => Ok(TrustRoots::only_file(file)?),
        None => {
            let settings = environment.map_or_else(|| Ok(FetchOptions::from_env()), clouds::fetching)?;
            Ok(TrustRoots::public_and(settings.ca_file.as_deref())?)
        }
    }
}

/// The same without an environment: of a recorded `network.private_ca`.
pub fn trust_with(private_ca: Option<&Utf8PathBuf>) -> Result<TrustRoots, TrustError> {
    TrustRoots::public_and(private_ca.or(FetchOptions::from_env().ca_file.as_ref()).map(Utf8PathBuf::as_path))
}

/// The proxies of `network.proxy`, and for each that it leaves out that of this process's variables.
pub fn proxies(settings: &Proxy) -> ProxySettings {
    let Proxy { https, http, no_proxy } = settings;
    // Missing secrets were refused before the run. Commands that only read records need no proxy.
    let read = |address: &Option<UrlSource>| address.as_ref().and_then(UrlSource::read);
    let no_proxy = Some(no_proxy.join(",")).filter(|hosts| !hosts.is_empty());
    ProxySettings { https: read(https), http: read(http), no_proxy }.or(ProxySettings::from_env())
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Library, Overrides};

    use super::*;

    /// A self-signed test CA, valid until 2126.
    const COMPANY: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBejCCASGgAwIBAgIUQDiXZuoB+swTQVtSKhUSNq5YuVwwCgYIKoZIzj0EAwIw\n\
EjEQMA4GA1UEAwwHY29tcGFueTAgFw0yNjExMjIxNzUxNTJaGA8yMTI2MTAyOTE3\n\
NTE1MlowEjEQMA4GA1UEAwwHY29tcGFueTBZMBMGByqGSM49AgEGCCqGSM49AwEH\n\
A0IABJUsSKC6X5EdFwiQDJ4kqTzjtdsraSvS39fTSKglKzH42Y8/XU6g+03l7r9t\n\
4xydI4EElbMXppPg8muaMNoOHgCjUzBRMB0GA1UdDgQWBBRrfPVVx5SA78Ic7XJK\n\
+peL1Vzi2zAfBgNVHSMEGDAWgBRrfPVVx5SA78Ic7XJK+peL1Vzi2zAPBgNVHRMB\n\
Af8EBTADAQH/MAoGCCqGSM49BAMCA0cAMEQCIAZMxXtrbBvBA7oguGDg4BM2QLuy\n\
yNzmuQTlai2Nk+tuAiBYDoU6hIQ1IWvm9A03U0N6yzvinr8o1p4GFNuL9qFNhw==\n\
-----END CERTIFICATE-----\n";

    #[test]
    fn private_ca_and_proxy_of_an_environment_apply_to_every_command() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("company.pem");
        std::fs::write(&file, COMPANY).unwrap();
        let sets = [format!("network.private_ca={file}"), "network.proxy.https=http://proxy:3128".to_owned()];
        let overrides = Overrides { sets: sets.into(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &clouds::catalogue()).unwrap().environment;
        let public = TrustRoots::public().store().len();
        assert_eq!(trust(None, Some(&environment)).unwrap().store().len(), public + 1);
        assert_eq!(proxies(&environment.network.proxy).https.as_deref(), Some("http://proxy:3128"));
        // A service with an authority of its own is trusted by that one alone.
        assert_eq!(trust(Some(&file), Some(&environment)).unwrap().store().len(), 1);
        let gone = file.with_file_name("gone.pem");
        assert!(trust(Some(&gone), None).unwrap_err().to_string().contains("gone.pem: the file does not exist"));
    }
}
