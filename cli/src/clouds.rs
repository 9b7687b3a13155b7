//! The providers that are linked into this program. Only this module names them and depends on cargo features.

#[cfg(feature = "kubernetes")]
mod adapter;
#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
#[cfg(feature = "kubernetes")]
mod cluster;
mod detection;
mod faults;
#[cfg(feature = "gcp")]
mod gcp;
#[cfg(all(test, feature = "aws", feature = "gcp", feature = "azure"))]
mod guides;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
mod image;
#[cfg(any(feature = "aws", feature = "azure", feature = "gcp"))]
mod managed;
#[cfg(all(test, feature = "aws", feature = "gcp", feature = "azure"))]
mod parity;
mod platform;
#[cfg(feature = "kubernetes")]
mod queries;
#[cfg(feature = "kubernetes")]
mod token;

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use futures::future::BoxFuture;
use textnlp_buckets::{Scheme, Variables};
use textnlp_keys::FileSecretStore;
use textnlp_models::FetchOptions;
use textnlp_onprem::{LocalOperations, OnPrem, Options};
use textnlp_orchestrator::environment::model::Environment;
use textnlp_orchestrator::environment::{Catalogue, Offer, SiteOrWitness, places};
use textnlp_provider::operations::{
    Operations, RolloutStatus, ServerProgram, ServiceEndpoint, SiteAccess, SiteOutputs,
};
use textnlp_provider::{Capabilities, Combined, Price, Provider, SecondPart, SecretStore, Site, SiteName};
use textnlp_service::Platform;

use crate::args;
use crate::dr_args::TakeBack;
use crate::report::Failure;
pub use faults::{end_outage_of, open_outages};
pub use platform::Linked;
pub use textnlp_onprem::{SystemUser, alert, supervise};

/// What a provider and its operations are created from.
pub struct Context<'a> {
    folder: &'a Utf8Path,
    secrets: Arc<dyn SecretStore>,
    environment: &'a Environment,
    site: &'a SiteName,
    /// Fields whose ownership is forced on a server-side apply conflict.
    take: &'a [String],
    /// The site's server program, if it runs on this machine.
    server: Option<ServerProgram>,
}

#[cfg(any(feature = "azure", feature = "gcp"))]
impl Context<'_> {
    /// The same with another store of secrets.
    fn with_secrets(&self, secrets: Arc<dyn SecretStore>) -> Self {
        Self { secrets, server: self.server.clone(), ..*self }
    }
}

/// Creates the provider of records for the site of a context, with the access of another site, and what it expands.
type Records = fn(&Context<'_>, &SiteName) -> anyhow::Result<(Arc<dyn Provider>, SecondPart)>;

/// One provider: its capabilities and how its parts are created.
pub struct Row {
    /// Its name in environment files.
    pub name: &'static str,
    /// A one-line description.
    pub about: &'static str,
    /// What it supports.
    pub capabilities: Capabilities,
    /// How a program with it is built; `None` if it is part of this one.
    pub missing: Option<&'static str>,
    /// What a comparison of costs assumes of its sites; `None` where they need nothing.
    pub assumed: Option<Assumed>,
    /// Whether a site without an account is bound to this machine.
    is_this_machine: bool,
    /// The account that a site is bound to.
    account: for<'a> fn(&'a Environment, &'a Site) -> BoxFuture<'a, anyhow::Result<String>>,
    provider: fn(&Context<'_>) -> anyhow::Result<Arc<dyn Provider>>,
    /// The records of sites at other providers, in a zone of the account of this site; `None` where it creates none.
    records: Option<Records>,
    operations: fn(&Context<'_>) -> anyhow::Result<Arc<dyn Operations>>,
    endpoint: fn(&SiteOutputs) -> Option<ServiceEndpoint>,
    /// The bucket of a site's models, where the provider has one; the id of an existing one is given.
    bucket: fn(&Site, Option<&str>) -> Option<ModelBucket>,
}

/// What a comparison of costs assumes of a site that the environment file has elsewhere.
pub struct Assumed {
    /// The region, where most prices are recorded.
    pub region: &'static str,
    /// The prices that are recorded.
    pub prices: fn() -> &'static [Price],
    /// An account; no price depends on it.
    pub account: &'static str,
    /// The address of a registry of images in an account and a region.
    pub registry: fn(account: &str, region: &str) -> String,
}

/// The bucket of a site's models.
pub struct ModelBucket {
    /// Its address: `s3://NAME/`.
    pub address: String,
    /// The variables that it is reached with, besides credentials.
    pub variables: Vec<(&'static str, String)>,
}

const ONPREM: Row = Row {
    name: "onprem",
    about: "your own machines: local processes under a supervisor",
    capabilities: textnlp_onprem::CAPABILITIES,
    missing: None,
    assumed: None,
    is_this_machine: true,
    account: |_, site| {
        Box::pin(async { Ok(if site.account.is_empty() { this_machine() } else { site.account.clone() }) })
    },
    provider: local_provider,
    records: None,
    operations: |context| {
        let folder = context.folder.join("sites").join(context.site.as_str());
        Ok(Arc::new(LocalOperations::new(context.server.clone()).at(folder)))
    },
    endpoint: textnlp_onprem::endpoint,
    bucket: |_, _| None,
};

#[cfg(feature = "kubernetes")]
const KUBERNETES: Row = cluster::ROW;
#[cfg(not(feature = "kubernetes"))]
const KUBERNETES: Row = Row { name: "kubernetes", about: "any conformant cluster", missing: Some(FEATURE), ..MISSING };

#[cfg(feature = "aws")]
const AWS: Row = aws::ROW;
#[cfg(not(feature = "aws"))]
const AWS: Row =
    Row { name: "aws", about: "Amazon Web Services: EKS or SageMaker", missing: Some(AWS_FEATURE), ..MISSING };

#[cfg(feature = "gcp")]
const GCP: Row = gcp::ROW;
#[cfg(not(feature = "gcp"))]
const GCP: Row =
    Row { name: "gcp", about: "Google Cloud: GKE, Cloud Run or Vertex AI", missing: Some(GCP_FEATURE), ..MISSING };

#[cfg(feature = "azure")]
const AZURE: Row = azure::ROW;
#[cfg(not(feature = "azure"))]
const AZURE: Row = Row {
    name: "azure",
    about: "Microsoft Azure: AKS or Azure Machine Learning",
    missing: Some(AZURE_FEATURE),
    ..MISSING
};

/// A provider that is not part of this build. It supports nothing.
#[cfg(not(all(feature = "kubernetes", feature = "aws", feature = "gcp", feature = "azure")))]
const MISSING: Row = Row {
    name: "",
    about: "",
    capabilities: Capabilities { runtimes: &[], site_records: None, names_balancers: false, forms: &[] },
    missing: Some("build it with its feature"),
    assumed: None,
    is_this_machine: false,
    account: |_, site| Box::pin(async { Ok(site.account.clone()) }),
    provider: |context| anyhow::bail!("the provider of site {} is not part of this program", context.site),
    records: None,
    operations: |_| Ok(Arc::new(LocalOperations::new(None))),
    endpoint: |_| None,
    bucket: |_, _| None,
};

/// Every provider that environment files may name.
pub const PROVIDERS: &[Row] = &[ONPREM, KUBERNETES, AWS, GCP, AZURE];

/// The message for providers behind a cargo feature.
#[cfg(not(feature = "kubernetes"))]
const FEATURE: &str = "build it with `cargo build --release --features kubernetes`";

/// The same for AWS.
#[cfg(not(feature = "aws"))]
const AWS_FEATURE: &str = "build it with `cargo build --release --features aws`";

/// The same for Google Cloud.
#[cfg(not(feature = "gcp"))]
const GCP_FEATURE: &str = "build it with `cargo build --release --features gcp`";

/// The same for Azure.
#[cfg(not(feature = "azure"))]
const AZURE_FEATURE: &str = "build it with `cargo build --release --features azure`";

fn row(name: &str) -> anyhow::Result<&'static Row> {
    let found = PROVIDERS.iter().find(|row| row.name == name);
    found.ok_or_else(|| anyhow::anyhow!("provider `{name}` is not part of this program"))
}

/// The provider catalogue that environment files are validated against.
pub fn catalogue() -> Catalogue {
    let here = detection::SystemView::here();
    let offer = |row: &Row| Offer {
        missing: row.missing.map(str::to_owned),
        capabilities: row.capabilities,
        region: here.region(row.name),
    };
    Catalogue {
        providers: PROVIDERS.iter().map(|row| (row.name.to_owned(), offer(row))).collect(),
        surroundings: Some(here.surroundings()),
    }
}

/// Whether a provider is a cloud, where a site needs nothing before it.
pub fn is_cloud(provider: &str) -> bool {
    row(provider).is_ok_and(|row| row.assumed.is_some())
}

/// Gives each site without an account the one that its provider's row assumes. Returns those sites with their accounts.
pub fn assume_accounts(environment: &mut Environment) -> Vec<(SiteName, &'static str)> {
    let without = environment.sites.iter_mut().filter(|site| site.account.is_none());
    without
        .filter_map(|site| {
            let assumed = row(&site.provider).ok()?.assumed.as_ref()?;
            site.account = Some(assumed.account.to_owned());
            Some((site.name.clone(), assumed.account))
        })
        .collect()
}

/// The folder for an environment's secrets, within its state folder.
pub const SECRETS: &str = "secrets";

/// The secret store of an environment.
pub fn secrets(folder: &Utf8Path) -> Arc<FileSecretStore> {
    Arc::new(FileSecretStore::new(folder.join(SECRETS)))
}

/// Options that both providers on this machine share.
fn options(context: &Context<'_>) -> anyhow::Result<Options> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let mut options = Options::new(context.folder.to_owned(), program)?;
    options.secrets = context.secrets.clone();
    options.needs_git = context.environment.prerequisites.git.is_some();
    options.user.clone_from(&context.environment.prerequisites.user);
    // What is recorded, restored or cloned keeps its user.
    let is_known = ["lineage.json", "sites"].iter().any(|entry| context.folder.join(entry).exists());
    options.requires_user = context.environment.phase.is_production() && !is_known;
    Ok(options)
}

/// The provider of a site, with the records of its names where the zone is at another site's provider. They are there as long as the
/// environment has such a site, so that records can be removed; those in the zone of the primary are wanted.
fn provider(name: &str, context: &Context<'_>) -> anyhow::Result<Arc<dyn Provider>> {
    let mut all = (row(name)?.provider)(context)?;
    let sites = &context.environment.sites;
    if !sites.iter().any(|site| site.name == *context.site && site.is_in_cluster()) {
        return Ok(all);
    }
    let primary = context.environment.primary();
    let mut known = vec![name];
    for home in primary.into_iter().chain(sites) {
        let Some(records) = row(&home.provider).ok().and_then(|row| row.records) else { continue };
        if known.contains(&home.provider.as_str()) {
            continue;
        }
        known.push(&home.provider);
        let (records, part) = records(context, &home.name)?;
        let part: SecondPart =
            if primary.is_some_and(|primary| primary.provider == home.provider) { part } else { |_, _| None };
        all = Arc::new(Combined::new(all, records, part));
    }
    Ok(all)
}

fn local_provider(context: &Context<'_>) -> anyhow::Result<Arc<dyn Provider>> {
    let Context { environment, site, take, .. } = context;
    anyhow::ensure!(
        take.is_empty(),
        "--take-ownership applies to Kubernetes objects only, and site {site} is not in a cluster"
    );
    let mut options = options(context)?;
    // A machine that only operates clusters serves nothing.
    if environment.sites.iter().any(|site| site.provider == ONPREM.name) {
        options.minimum = environment.minimum();
    }
    options.models = fetching(environment)?;
    if let Some(cache) = model_folder(environment)? {
        options.model_cache = cache;
    }
    Ok(Arc::new(OnPrem::new(options)))
}

/// `rollout watch`, which runs in the pod of the rollout's job.
pub async fn control_rollout(
    account: &Utf8Path,
    prometheus: Option<&Utf8Path>,
    report: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<RolloutStatus> {
    #[cfg(feature = "kubernetes")]
    return cluster::control_rollout(account, prometheus, report).await;
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = (account, prometheus, report);
        anyhow::bail!(FEATURE)
    }
}

/// `adapter`, which runs in the pod of the metrics adapter.
pub async fn adapter(args: &args::Adapter, report: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    #[cfg(feature = "kubernetes")]
    return adapter::run(args, report).await;
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = (args, report);
        anyhow::bail!(FEATURE)
    }
}

/// `kube-token`: a credential for `kubectl`.
pub async fn kube_token(args: &args::KubeToken) -> Result<serde_json::Value, Failure> {
    #[cfg(feature = "kubernetes")]
    return token::kube_token(args).await;
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = args;
        Err(Failure::usage("not_linked", anyhow::anyhow!(FEATURE)))
    }
}

/// Ends a drill's outage.
async fn end_outage(args: &TakeBack) -> anyhow::Result<usize> {
    if let (Some(environment), Some(site)) = (&args.environment, &args.of) {
        let environment: Environment = serde_json::from_str(environment)?;
        let platform: &dyn Platform = &Linked;
        let site = platform.operations_of(&args.state, &environment, site, None)?;
        let outages = site.and_then(|site| site.outages());
        let outages = outages.ok_or_else(|| anyhow::anyhow!("the environment of the fault has no such site"))?;
        // Another account may have a cluster of that name, where there is nothing to end.
        if let SiteAccess::Cloud { api_server } = outages.access().await? {
            let there = args.api_server.as_deref().unwrap_or_default();
            anyhow::ensure!(
                api_server == there,
                "the cluster of this site is at {api_server}, but the fault was injected in {there}: sign in to that account"
            );
        }
        return Ok(if args.look { outages.nodes().await? } else { outages.end(&args.fault).await? });
    }
    #[cfg(feature = "kubernetes")]
    return cluster::end_outage(args).await;
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = args;
        anyhow::bail!(FEATURE)
    }
}

/// How models are fetched: by this process's variables, overridden by the environment but for requests with `HF_TOKEN`.
pub fn fetching(environment: &Environment) -> anyhow::Result<FetchOptions> {
    let network = &environment.network;
    let ca_file = network.private_ca.as_deref().map(absolute).transpose()?;
    Ok(FetchOptions::from_env().by_file(crate::network::proxies(&network.proxy), ca_file))
}

/// The environment's model folder, if it sets one.
pub fn model_folder(environment: &Environment) -> anyhow::Result<Option<Utf8PathBuf>> {
    environment.storage.model_folder.as_deref().map(absolute).transpose()
}

/// Resolves a relative path against the working directory.
fn absolute(path: &str) -> anyhow::Result<Utf8PathBuf> {
    Ok(Utf8PathBuf::try_from(std::env::current_dir()?)?.join(path))
}

fn this_machine() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id: String = id.trim().chars().filter(char::is_ascii_hexdigit).take(12).collect();
    if id.is_empty() { format!("host-{}", host_name()) } else { format!("machine-{id}") }
}

/// The host name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The buckets of the models of an environment's sites.
///
/// # Errors
/// The account that a bucket is named by cannot be found.
pub async fn model_buckets(environment: &Environment) -> anyhow::Result<Vec<(SiteName, ModelBucket)>> {
    let mut found = Vec::new();
    for SiteOrWitness { provider, mut site } in places(environment) {
        let row = row(&provider)?;
        // The witness has none.
        let Some(settings) = environment.sites.iter().find(|settings| settings.name == site.name) else { continue };
        let existing = settings.existing.bucket.as_deref().or(environment.storage.existing.as_deref());
        if (row.bucket)(&site, existing).is_some() && site.account.is_empty() {
            site.account = (row.account)(environment, &site).await?;
        }
        found.extend((row.bucket)(&site, existing).map(|bucket| (site.name.clone(), bucket)));
    }
    Ok(found)
}

/// Variables with which AWS's own crate signs in to a bucket.
#[cfg(feature = "aws")]
const SIGNS_IN: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// The variables for a bucket. Without credentials in them, those that the cloud's own tools find: of a profile or a sign-in.
///
/// # Errors
/// The profile of AWS_PROFILE gives none.
#[cfg_attr(
    not(feature = "aws"),
    expect(clippy::unused_async, unused_variables, reason = "AWS is not part of this build")
)]
pub async fn bucket_variables(scheme: Scheme, variables: Variables) -> Result<Variables, Failure> {
    #[cfg(feature = "aws")]
    if scheme == Scheme::S3 && !SIGNS_IN.iter().any(|name| variables.get(name).is_some()) {
        match textnlp_token::aws_variables().await {
            Ok(found) => {
                let text = found.iter().filter_map(|(name, value)| Some((*name, value.expose_text()?)));
                return Ok(variables.with(text));
            }
            // The crate asks the machine's own services.
            Err(_) if variables.get("AWS_PROFILE").is_none() => {}
            Err(error) => return Err(Failure::new(crate::report::Exit::Failed, "sign_in", anyhow::Error::new(error))),
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(feature = "aws", feature = "gcp", feature = "azure"))]
    use std::collections::BTreeSet;
    use textnlp_keys::trust;
    use textnlp_orchestrator::environment::{Library, Overrides};
    #[cfg(all(feature = "aws", feature = "gcp", feature = "azure"))]
    use textnlp_provider::capabilities::{Capability, RuntimeSupport, Setting};

    #[test]
    fn model_downloads_use_the_network_settings_of_the_environment() {
        let sets = [
            "network.proxy.https=http://proxy:3128",
            "network.proxy.no_proxy=[a.example, b.example]",
            "network.private_ca=/etc/hosts",
            "storage.model_folder=models here",
        ];
        let overrides = Overrides { sets: sets.map(str::to_owned).into(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &catalogue()).unwrap().environment;
        let options = fetching(&environment).unwrap();
        assert_eq!(options.proxy.https.as_deref(), Some("http://proxy:3128"));
        assert_eq!(options.proxy.no_proxy.as_deref(), Some("a.example,b.example"));
        assert_eq!(options.ca_file.as_deref(), Some(Utf8Path::new("/etc/hosts")));
        let own = FetchOptions::from_env();
        assert_eq!(options.token_route, Some((own.proxy, own.ca_file)), "HF_TOKEN does not pass what the file names");
        let folder = model_folder(&environment).unwrap().unwrap();
        assert!(folder.is_absolute() && folder.ends_with("models here"), "{folder}");
    }

    /// A server's certificate for `name` from the authority `ca` with the key `ca_key`, and whether a TLS client that
    /// trusts only `trusted` accepts it.
    fn is_accepted(trusted: &str, ca: &str, ca_key: &textnlp_provider::Secret, name: &str) -> bool {
        use rustls::client::WebPkiServerVerifier;
        use rustls::client::danger::ServerCertVerifier as _;
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
        let key = trust::new_key().unwrap();
        let wildcard = name.strip_prefix("any.").map_or(name.to_owned(), |base| format!("*.{base}"));
        let leaf = trust::issue(ca, ca_key, &key, &[wildcard], 9, jiff::Timestamp::now()).unwrap();
        let roots = textnlp_net::trust::TrustRoots::only_pem(trusted.as_bytes(), "test").unwrap().store();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build().unwrap();
        let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        let server = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&leaf, &[], &server, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn clients_trust_a_local_authority_for_its_own_names_only() {
        let key = trust::new_key().unwrap();
        let authority = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            trust::authority(&key, "a", &names, 30, jiff::Timestamp::now()).unwrap()
        };
        let ours = authority(&["*.texts.example", "127.0.0.1", "::1", "host-1", "localhost"]);
        for name in ["any.texts.example", "127.0.0.1", "::1", "host-1", "localhost"] {
            assert!(is_accepted(&ours, &ours, &key, name), "{name}");
        }
        // The holder of its key can sign these, and an authority without constraints would let them pass.
        let open = authority(&[]);
        for name in ["bank.example", "texts.example.org", "10.0.0.1", "::2"] {
            assert!(is_accepted(&open, &open, &key, name), "{name}");
            assert!(!is_accepted(&ours, &ours, &key, name), "{name}");
        }
        // Names of one kind do not open the other.
        assert!(!is_accepted(&authority(&["texts.example"]), &open, &key, "10.0.0.1"));
        assert!(!is_accepted(&authority(&["10.0.0.1"]), &open, &key, "texts.example"));
    }

    #[test]
    #[cfg(feature = "kubernetes")]
    fn settings_unused_by_a_cluster_are_refused() {
        let refused = |set: &str| {
            let overrides = Overrides { sets: vec![set.to_owned()], ..Overrides::default() };
            let loaded = Library::built_in().load("pilot", &overrides, &catalogue()).unwrap();
            loaded.report.refusals().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        assert!(refused("storage.model_folder=/models").contains("`storage.model_folder`"));
        assert!(!refused("network.proxy.https=http://proxy:3128").contains("network.proxy"));
    }

    /// The columns of the guide: each provider, by runtime.
    #[cfg(all(feature = "aws", feature = "gcp", feature = "azure"))]
    fn columns() -> Vec<(String, &'static RuntimeSupport)> {
        let of_row = |row: &'static Row| {
            let head = move |support: &RuntimeSupport| match row.capabilities.runtimes.len() {
                1 => row.name.to_owned(),
                _ => format!("{}, {}", row.name, support.runtime),
            };
            row.capabilities.runtimes.iter().map(move |support| (head(support), support))
        };
        PROVIDERS.iter().flat_map(of_row).collect()
    }

    /// The settings that need the support of a provider, sorted.
    #[cfg(all(feature = "aws", feature = "gcp", feature = "azure"))]
    fn paths(columns: &[(String, &'static RuntimeSupport)]) -> BTreeSet<&'static str> {
        let values = columns.iter().flat_map(|(_, support)| support.supported.iter());
        let values = values.filter(|capability| !matches!(capability, Capability::Optional(_)));
        values.map(|capability| capability.path()).chain(Setting::ALL.iter().map(|setting| setting.path())).collect()
    }

    /// The table of the guide: what each provider supports. Of a setting with several values, the supported ones.
    #[cfg(all(feature = "aws", feature = "gcp", feature = "azure"))]
    fn matrix() -> String {
        let columns = columns();
        let heads: Vec<&str> = columns.iter().map(|(head, _)| head.as_str()).collect();
        let mut text = format!("| setting | {} |\n|---|{}", heads.join(" | "), "---|".repeat(heads.len()));
        for path in paths(&columns) {
            let cell = |support: &RuntimeSupport| {
                let found = support.supported.iter().filter(|capability| capability.path() == path);
                let words: Vec<String> = found
                    .map(|capability| match capability {
                        Capability::Optional(_) => "yes".to_owned(),
                        value => format!("`{value}`"),
                    })
                    .collect();
                if words.is_empty() { "—".to_owned() } else { words.join(", ") }
            };
            let cells: Vec<String> = columns.iter().map(|(_, support)| cell(support)).collect();
            text += &format!("\n| `{path}` | {} |", cells.join(" | "));
        }
        text + "\n"
    }

    /// The list of the guide: why each setting is refused that a provider does not support, in the words of the refusal.
    #[cfg(all(feature = "aws", feature = "gcp", feature = "azure"))]
    fn reasons() -> String {
        let columns = columns();
        let paths = paths(&columns);
        let supports = |support: &RuntimeSupport, path: &str| support.supported.iter().any(|one| one.path() == path);
        for (head, support) in &columns {
            for (path, _) in support.refused {
                assert!(paths.contains(path) && !supports(support, path), "{head} does not refuse `{path}`");
            }
        }
        let mut text = String::new();
        for path in paths {
            let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
            for (head, support) in columns.iter().filter(|(_, support)| !supports(support, path)) {
                let reason = support.reason(path).filter(|reason| !reason.is_empty());
                let reason = reason.unwrap_or_else(|| panic!("{head} refuses `{path}` without a reason"));
                let head = format!("`{head}`");
                match reasons.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, heads)) => heads.push(head),
                    None => reasons.push((reason, vec![head])),
                }
            }
            let words: Vec<String> = match reasons.as_slice() {
                [] => continue,
                [(reason, _)] => vec![(*reason).to_owned()],
                several => several.iter().map(|(reason, heads)| format!("{}: {reason}", heads.join(", "))).collect(),
            };
            text += &format!("- `{path}`: {}\n", words.join("; "));
        }
        text
    }

    #[cfg(all(feature = "aws", feature = "gcp", feature = "azure"))]
    #[test]
    fn guide_lists_what_each_provider_supports() {
        textnlp_tests::guide::expect_section("docs/guide/providers.md", "capabilities", &matrix());
    }

    #[cfg(all(feature = "aws", feature = "gcp", feature = "azure"))]
    #[test]
    fn guide_lists_why_each_setting_is_refused() {
        textnlp_tests::guide::expect_section("docs/guide/providers.md", "reasons", &reasons());
    }
}
