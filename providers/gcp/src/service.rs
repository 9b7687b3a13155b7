//! The services of Google Cloud that the provider calls: one row each.

use std::collections::BTreeMap;

use reqwest::Url;
use textnlp_net::client::is_loopback;
use textnlp_provider::{Error, ErrorKind, Result};

/// A service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "`title` names them")]
pub enum Service {
    AiPlatform,
    ArtifactRegistry,
    BigQuery,
    BillingBudgets,
    CloudBilling,
    CloudKms,
    Compute,
    Container,
    Dashboards,
    Dns,
    Iam,
    IamCredentials,
    Monitoring,
    OAuth2,
    Redis,
    ResourceManager,
    Run,
    ServiceNetworking,
    ServiceUsage,
    ServiceUsageBeta,
    Sql,
    Storage,
}

/// What is known of a service. The hosts and versions are those of its discovery document.
struct Row {
    service: Service,
    /// As [`Service::name`] returns it.
    name: &'static str,
    /// As bills and consoles call it.
    title: &'static str,
    /// The host with its API.
    host: &'static str,
    /// The start of every path.
    version: &'static str,
    /// The end of gcloud's variable with another address
    /// (<https://cloud.google.com/sdk/gcloud/reference/topic/configurations>).
    variable: &'static str,
}

const fn row(
    service: Service,
    name: &'static str,
    title: &'static str,
    host: &'static str,
    version: &'static str,
    variable: &'static str,
) -> Row {
    Row { service, name, title, host, version, variable }
}

/// The start of gcloud's variables with other addresses of services.
const OVERRIDES: &str = "CLOUDSDK_API_ENDPOINT_OVERRIDES_";

const ROWS: &[Row] = &[
    row(Service::AiPlatform, "aiplatform", "Vertex AI", "aiplatform.googleapis.com", "v1/", "AIPLATFORM"),
    row(
        Service::ArtifactRegistry,
        "artifactregistry",
        "Artifact Registry",
        "artifactregistry.googleapis.com",
        "v1/",
        "ARTIFACTREGISTRY",
    ),
    row(Service::BigQuery, "bigquery", "BigQuery", "bigquery.googleapis.com", "bigquery/v2/", "BIGQUERY"),
    row(
        Service::BillingBudgets,
        "billingbudgets",
        "Cloud Billing Budget",
        "billingbudgets.googleapis.com",
        "v1/",
        "BILLINGBUDGETS",
    ),
    row(Service::CloudBilling, "cloudbilling", "Cloud Billing", "cloudbilling.googleapis.com", "v1/", "CLOUDBILLING"),
    row(Service::CloudKms, "cloudkms", "Cloud KMS", "cloudkms.googleapis.com", "v1/", "CLOUDKMS"),
    row(Service::Compute, "compute", "Compute Engine", "compute.googleapis.com", "compute/v1/", "COMPUTE"),
    row(Service::Container, "container", "Kubernetes Engine", "container.googleapis.com", "v1/", "CONTAINER"),
    row(Service::Dns, "dns", "Cloud DNS", "dns.googleapis.com", "dns/v1/", "DNS"),
    row(Service::Iam, "iam", "IAM", "iam.googleapis.com", "v1/", "IAM"),
    row(
        Service::IamCredentials,
        "iamcredentials",
        "IAM Service Account Credentials",
        "iamcredentials.googleapis.com",
        "v1/",
        "IAMCREDENTIALS",
    ),
    row(Service::Monitoring, "monitoring", "Cloud Monitoring", "monitoring.googleapis.com", "v3/", "MONITORING"),
    // `named` finds the first row of a name.
    row(Service::Dashboards, "monitoring", "Cloud Monitoring", "monitoring.googleapis.com", "v1/", "MONITORING"),
    row(Service::OAuth2, "oauth2", "OAuth", "www.googleapis.com", "oauth2/v2/", "OAUTH2"),
    row(Service::Redis, "redis", "Memorystore for Redis", "redis.googleapis.com", "v1/", "REDIS"),
    row(
        Service::ResourceManager,
        "cloudresourcemanager",
        "Resource Manager",
        "cloudresourcemanager.googleapis.com",
        "v1/",
        "CLOUDRESOURCEMANAGER",
    ),
    row(Service::Run, "run", "Cloud Run", "run.googleapis.com", "v2/", "RUN"),
    row(
        Service::ServiceNetworking,
        "servicenetworking",
        "Service Networking",
        "servicenetworking.googleapis.com",
        "v1/",
        "SERVICENETWORKING",
    ),
    row(Service::ServiceUsage, "serviceusage", "Service Usage", "serviceusage.googleapis.com", "v1/", "SERVICEUSAGE"),
    row(
        Service::ServiceUsageBeta,
        "serviceusage",
        "Service Usage",
        "serviceusage.googleapis.com",
        "v1beta1/",
        "SERVICEUSAGE",
    ),
    row(Service::Sql, "sqladmin", "Cloud SQL", "sqladmin.googleapis.com", "v1/", "SQL"),
    row(Service::Storage, "storage", "Cloud Storage", "storage.googleapis.com", "storage/v1/", "STORAGE"),
];

impl Service {
    /// All services.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.service)
    }

    fn row(self) -> &'static Row {
        ROWS.iter().find(|row| row.service == self).unwrap_or(&ROWS[0])
    }

    /// The name of its discovery document: `compute`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The service with that name.
    pub fn named(name: &str) -> Option<Self> {
        ROWS.iter().find(|row| row.name == name).map(|row| row.service)
    }

    /// As bills call it: `Compute Engine`.
    pub fn title(self) -> &'static str {
        self.row().title
    }

    /// The parameter for the longest pages of its lists, where pages are shorter without it: the discovery documents state both.
    pub(crate) fn longest_page(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::ArtifactRegistry => Some(("pageSize", "1000")),
            Self::Iam => Some(("pageSize", "100")),
            Self::ServiceUsage => Some(("pageSize", "200")),
            _ => None,
        }
    }

    /// Whether each region has a host of its own, by the location in the path
    /// (<https://cloud.google.com/vertex-ai/docs/reference/rest#service-endpoint>).
    fn is_regional(self) -> bool {
        self == Self::AiPlatform
    }

    /// The API that a project has to enable: `compute.googleapis.com`.
    pub fn api(self) -> &'static str {
        self.row().host
    }
}

/// The addresses of all services.
#[derive(Debug, Clone)]
pub(crate) struct Endpoints(BTreeMap<Service, (Url, Url)>);

impl Endpoints {
    /// Google's own, except for those that gcloud's variables override. A token is sent over TLS or to this machine only.
    pub(crate) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut all = BTreeMap::new();
        for row in ROWS {
            let name = format!("{OVERRIDES}{}", row.variable);
            let root = match variable(&name) {
                Some(address) => overridden(&name, &address, row.version)?,
                None => parsed(&name, &format!("https://{}/", row.host))?,
            };
            let versioned = root.join(row.version).map_err(|_| refused(&name, "it is not an address"))?;
            all.insert(row.service, (root, versioned));
        }
        Ok(Self(all))
    }

    /// The address of a path of a service.
    pub(crate) fn url(&self, service: Service, path: &str) -> Result<Url> {
        let base = self.0.get(&service).map(|(_, versioned)| versioned);
        let url = base.and_then(|base| Url::parse(&format!("{base}{path}")).ok());
        let mut url = url.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "call", service.title()).because(format!("`{path}` is no path"))
        })?;
        let location = path.split('/').skip_while(|part| *part != "locations").nth(1);
        if let Some(location) = location
            && service.is_regional()
            && url.host_str() == Some(service.api())
        {
            let host = format!("{location}-{}", service.api());
            url.set_host(Some(&host)).map_err(|_| refused(&host, "it is no host"))?;
        }
        Ok(url)
    }

    /// The address of a registry of images: one on this machine that stands for Artifact Registry stands for its registries too.
    pub(crate) fn registry(&self, host: &str) -> String {
        let root = self.0.get(&Service::ArtifactRegistry).map(|(root, _)| root).filter(|root| is_loopback(root));
        root.map_or_else(|| format!("https://{host}"), |root| root.origin().ascii_serialization())
    }

    /// The address of a service without a version, for gRPC.
    pub(crate) fn root(&self, service: Service) -> String {
        self.0.get(&service).map(|(root, _)| root.as_str().trim_end_matches('/').to_owned()).unwrap_or_default()
    }
}

fn refused(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, "use", name).because(why.to_owned())
}

fn parsed(name: &str, address: &str) -> Result<Url> {
    let url = Url::parse(address).map_err(|_| refused(name, "it is not an address"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        _ => Err(refused(name, "a token is sent over https only, or to this machine")),
    }
}

/// The root of an overriding address: gcloud's have the version for some services.
fn overridden(name: &str, address: &str, version: &str) -> Result<Url> {
    let address = format!("{}/", address.trim().trim_end_matches('/'));
    parsed(name, address.strip_suffix(version).unwrap_or(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_variables_of_gcloud() {
        let none = Endpoints::of(|_| None).unwrap();
        for (service, url) in [
            (Service::Compute, "https://compute.googleapis.com/compute/v1/projects/p"),
            (Service::Container, "https://container.googleapis.com/v1/projects/p"),
            (Service::OAuth2, "https://www.googleapis.com/oauth2/v2/projects/p"),
        ] {
            assert_eq!(none.url(service, "projects/p").unwrap().as_str(), url);
        }
        let path = "projects/p/locations/europe-west4/models:upload";
        let url = none.url(Service::AiPlatform, path).unwrap();
        assert_eq!(url.as_str(), format!("https://europe-west4-aiplatform.googleapis.com/v1/{path}"));
        for address in ["http://127.0.0.1:7/x", "http://127.0.0.1:7/x/", "http://127.0.0.1:7/x/compute/v1/"] {
            let all =
                Endpoints::of(|name| (name == "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE").then(|| address.to_owned()));
            let url = all.unwrap().url(Service::Compute, "projects/p").unwrap();
            assert_eq!(url.as_str(), "http://127.0.0.1:7/x/compute/v1/projects/p", "{address}");
        }
        let storage =
            Endpoints::of(|name| name.ends_with("STORAGE").then(|| "http://127.0.0.1:7/".to_owned())).unwrap();
        assert_eq!(storage.root(Service::Storage), "http://127.0.0.1:7");
        for address in ["http://example.com/", "ftp://127.0.0.1/", "nothing"] {
            assert!(Endpoints::of(|name| name.ends_with("_IAM").then(|| address.to_owned())).is_err(), "{address}");
        }
    }

    /// No test calls Google.
    #[test]
    fn every_service_is_on_this_machine_with_the_variables_of_the_simulator() {
        let cloud = textnlp_sim::gcp::GoogleCloud::start(textnlp_sim::gcp::Options::zero_latency());
        let variables: BTreeMap<String, String> = cloud.variables().into_iter().collect();
        let endpoints = Endpoints::of(|name| variables.get(name).cloned()).unwrap();
        for service in Service::all() {
            let url = endpoints.url(service, "projects/p").unwrap();
            assert!(is_loopback(&url), "{service:?}: {url}");
        }
        let root = Url::parse(&endpoints.root(Service::Storage)).unwrap();
        let registry = Url::parse(&endpoints.registry("europe-west1-docker.pkg.dev")).unwrap();
        assert!(is_loopback(&root) && is_loopback(&registry), "{root} {registry}");
    }

    #[test]
    fn every_service_has_a_row() {
        assert_eq!(Service::all().count(), 22);
        for service in Service::all() {
            assert_eq!(service.row().service, service);
        }
    }
}
