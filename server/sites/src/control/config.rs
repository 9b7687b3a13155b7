//! The configuration files of a site agent and of a witness.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Deserializer};
use textnlp_control::Site;
use textnlp_gateway as gateway;
use textnlp_process::{Address, InvalidConfig, read_config};
use textnlp_store::PostgresAt;

use super::copies::CopiesConfig;
use super::database::PostgresConfig;
use super::dns::DnsConfig;

/// `watch:` of a site.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Which site this is.
    pub site: Site,
    /// Directory of the log and related files.
    pub folder: Utf8PathBuf,
    /// Its own socket.
    #[serde(deserialize_with = "address")]
    pub listen: Address,
    /// The other sites, through this site's inter-site relay.
    #[serde(deserialize_with = "addresses")]
    pub peers: BTreeMap<Site, Address>,
    /// The witness, through this site's inter-site relay.
    #[serde(deserialize_with = "address")]
    pub witness: Address,
    /// `sqlite:///…`: where the site's replicas read control data; `postgresql://…` for the database of all sites;
    /// empty for an external one in `outside`.
    #[serde(default)]
    pub database: String,
    /// The PostgreSQL of all sites.
    #[serde(default)]
    pub postgres: Option<PostgresConfig>,
    /// The external PostgreSQL that all sites store in: none of its data goes through the log.
    #[serde(default)]
    pub outside: Option<OutsideConfig>,
    /// The key that signs this site's tokens; its public half is distributed to all sites.
    #[serde(default)]
    pub jwt_key_file: Option<Utf8PathBuf>,
    /// Between two heartbeats.
    pub every_ms: u64,
    /// Silence of up to this many heartbeats triggers nothing.
    pub lost_after: u32,
    /// Whether this site asks for leadership without a command when the primary is lost.
    pub automatic: bool,
    /// Whether the home site gets leadership back without a command.
    pub failback: bool,
    /// The site that is primary in normal operation.
    pub home: Site,
    /// The order in which sites ask for leadership; when absent, the home site and then by name.
    #[serde(default)]
    pub order: Vec<Site>,
    /// A site that lacks data for longer is reported as lagging.
    pub max_lag_ms: u64,
    /// The address of this site's service when it does not run beside this site agent: while it does not answer, the
    /// site is treated as lost.
    #[serde(default)]
    pub service: Option<ServiceConfig>,
    /// What is copied from the primary besides control data and usage.
    #[serde(default)]
    pub copies: Option<CopiesConfig>,
}

/// `witness:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessConfig {
    /// Directory of the record.
    pub folder: Utf8PathBuf,
    /// Its socket.
    #[serde(deserialize_with = "address")]
    pub listen: Address,
    /// All sites.
    pub sites: Vec<Site>,
    /// The first primary.
    pub home: Site,
    /// Between two heartbeats.
    pub every_ms: u64,
    /// Silence of up to this many heartbeats triggers nothing.
    pub lost_after: u32,
    /// Traffic weights in normal operation.
    #[serde(default)]
    pub weights: BTreeMap<Site, u32>,
    /// The front's administration socket.
    #[serde(default, deserialize_with = "maybe_address")]
    pub front: Option<Address>,
    /// The name whose addresses follow the sites.
    #[serde(default)]
    pub dns: Option<DnsConfig>,
}

/// `watch.service`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Its address, or the socket of the inter-site relay that forwards to it.
    pub at: gateway::SocketAddress,
    /// The same for an address of health checks that clients do not share; if nothing listens there, `at` is asked.
    #[serde(default)]
    pub ready_at: Option<gateway::SocketAddress>,
    /// TLS settings for the server.
    #[serde(default)]
    pub tls: Option<gateway::BackendTls>,
    /// The path of the health check; a 2xx status means healthy.
    pub path: String,
}

/// `watch.outside`: an address, or the file that contains it, as in a server's `database`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutsideConfig {
    /// `postgresql://…`
    #[serde(default)]
    pub url: Option<String>,
    /// The file with the address.
    #[serde(default)]
    pub url_file: Option<Utf8PathBuf>,
    /// The file with the password.
    #[serde(default)]
    pub password_file: Option<Utf8PathBuf>,
    /// The authority that it is trusted by.
    #[serde(default)]
    pub ca_file: Option<Utf8PathBuf>,
}

impl OutsideConfig {
    /// The parsed address; an error if it is invalid.
    pub(super) fn at(&self) -> Result<PostgresAt, String> {
        let at = match (&self.url, &self.url_file) {
            (Some(url), None) => PostgresAt::new(url)?,
            (None, Some(file)) => PostgresAt::in_file(file),
            _ => return Err("`outside` has either `url` or `url_file`".to_owned()),
        };
        let at = self.password_file.iter().fold(at, |at, file| at.with_password(file));
        Ok(self.ca_file.iter().fold(at, |at, file| at.with_authority(file)))
    }

    fn problem(&self) -> Option<String> {
        self.at().err()
    }
}

impl AgentConfig {
    /// Reads and checks a file.
    pub fn read(file: &Utf8Path) -> Result<Self, InvalidConfig> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            watch: AgentConfig,
        }
        read_config("configuration", file, MAX_FILE_BYTES, |document: Document| document.watch, Self::problems)
    }

    fn problems(&self) -> Vec<String> {
        let sites = self.sites();
        let problems = [
            self.peers.contains_key(&self.site).then(|| format!("`peers` contains this site, {}", self.site)),
            (!sites.contains(&self.home))
                .then(|| format!("`home` is {}, which is not a site of this environment", self.home)),
            pace(self.every_ms, self.lost_after),
            (!self.folder.is_absolute()).then(|| "`folder` is not an absolute path".to_owned()),
            unauthenticated(&self.listen),
            self.outside.as_ref().and_then(OutsideConfig::problem),
            match &self.postgres {
                _ if self.outside.is_some() => (self.postgres.is_some() || !self.database.is_empty())
                    .then(|| "`outside` cannot be combined with `database` or `postgres`".to_owned()),
                None => (!self.database.starts_with("sqlite://")).then(|| "`database` is not `sqlite://…`".to_owned()),
                Some(_) => (!self.database.starts_with("postgresql://"))
                    .then(|| "`database` must be `postgresql://…` because `postgres` is set".to_owned()),
            },
            self.service
                .as_ref()
                .filter(|service| !service.path.starts_with('/'))
                .map(|service| format!("`service.path` is `{}`, but a path must begin with a slash", service.path)),
            // A log of control data would stay behind with the primary whose service alone is lost.
            (self.service.is_some() && self.outside.is_none())
                .then(|| "`service` is only for sites that share a database `outside`".to_owned()),
            self.copies.as_ref().and_then(CopiesConfig::problem),
        ];
        problems.into_iter().flatten().collect()
    }

    /// All sites, in the order in which they ask for leadership.
    pub fn sites(&self) -> Vec<Site> {
        let mut sites: Vec<Site> = self.peers.keys().chain([&self.site]).cloned().collect();
        let rank = |site: &Site| self.order.iter().position(|s| s == site).unwrap_or(usize::MAX);
        sites.sort_by_key(|site| (rank(site), *site != self.home, site.clone()));
        sites
    }

    /// A shorter silence triggers nothing, in milliseconds.
    pub fn grace_ms(&self) -> u64 {
        self.every_ms * u64::from(self.lost_after)
    }
}

impl WitnessConfig {
    /// Reads and checks a file.
    pub fn read(file: &Utf8Path) -> Result<Self, InvalidConfig> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            witness: WitnessConfig,
        }
        read_config("configuration", file, MAX_FILE_BYTES, |document: Document| document.witness, Self::problems)
    }

    fn problems(&self) -> Vec<String> {
        let unknown_site = self.weights.keys().find(|site| !self.sites.contains(site));
        let problems = [
            (self.sites.len() < 2).then(|| "`sites` names fewer than two".to_owned()),
            (!self.sites.contains(&self.home))
                .then(|| format!("`home` is {}, which is not a site of this environment", self.home)),
            unknown_site.map(|site| format!("`weights` names {site}, which is not a site of this environment")),
            pace(self.every_ms, self.lost_after),
            (!self.folder.is_absolute()).then(|| "`folder` is not an absolute path".to_owned()),
            unauthenticated(&self.listen),
        ];
        let dns = self.dns.as_ref().map(|dns| dns.problems(&self.sites, &self.home, &self.weights));
        problems.into_iter().flatten().chain(dns.into_iter().flatten()).collect()
    }

    /// A shorter silence triggers nothing, in milliseconds.
    pub fn grace_ms(&self) -> u64 {
        self.every_ms * u64::from(self.lost_after)
    }
}

/// Checks the heartbeat interval: faster, a busy machine looks like a failed one; slower, failover takes too long.
fn pace(every_ms: u64, lost_after: u32) -> Option<String> {
    if !(50..=600_000).contains(&every_ms) {
        return Some(format!("`every_ms` is {every_ms}, not from 50 to 600000"));
    }
    (!(2..=100).contains(&lost_after)).then(|| format!("`lost_after` is {lost_after}, not from 2 to 100"))
}

/// Who reaches the API may write control data, such as API keys. Access to a socket in a private folder is its authentication.
fn unauthenticated(listen: &Address) -> Option<String> {
    matches!(listen, Address::Tcp(_))
        .then(|| format!("`listen` is {listen}: this API has no authentication, so it must be `unix:…`"))
}

/// Maximum size of a configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Address, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

fn maybe_address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Address>, D::Error> {
    address(from).map(Some)
}

fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<Site, Address>, D::Error> {
    let texts = BTreeMap::<Site, String>::deserialize(from)?;
    texts.into_iter().map(|(site, text)| Ok((site, text.parse().map_err(serde::de::Error::custom)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_check_is_accepted_only_with_an_external_database() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::try_from(folder.path().join("watch.yaml")).unwrap();
        let read = |more: &str| {
            let watch = "site: a, folder: /f, listen: \"unix:/a\", peers: { b: \"unix:/b\" }, witness: \"unix:/w\", every_ms: 1000, \
                         lost_after: 3, automatic: true, failback: true, home: a, max_lag_ms: 1000";
            std::fs::write(&file, format!("watch: {{ {watch}, {more} }}")).unwrap();
            AgentConfig::read(&file).map_err(|error| error.to_string())
        };
        let outside = "outside: { url_file: /u }";
        let service = |path: &str| format!("service: {{ at: \"unix:/s\", path: \"{path}\" }}");
        assert!(read(&format!("{outside}, {}", service("/ready"))).unwrap().service.is_some());
        let slash = read(&format!("{outside}, {}", service("ready"))).unwrap_err();
        assert!(slash.contains("`service.path` is `ready`, but a path must begin with a slash"), "{slash}");
        let inside = read(&format!("database: \"sqlite:///d\", {}", service("/ready"))).unwrap_err();
        assert!(inside.contains("`service` is only for sites that share a database `outside`"), "{inside}");
    }

    #[test]
    fn agent_and_witness_listen_only_on_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::try_from(folder.path().join("control.yaml")).unwrap();
        let why = "this API has no authentication, so it must be `unix:…`";
        for (listen, refused) in [("0.0.0.0:7391", true), ("127.0.0.1:0", true), ("unix:/run/a", false)] {
            let pace = "every_ms: 1000, lost_after: 3, home: a";
            let agent = "site: a, peers: { b: \"unix:/b\" }, witness: \"unix:/w\", automatic: true, failback: true, \
                         max_lag_ms: 1000, database: \"sqlite:///d\"";
            std::fs::write(&file, format!("watch: {{ folder: /f, listen: \"{listen}\", {pace}, {agent} }}")).unwrap();
            let read = AgentConfig::read(&file).map_err(|error| error.to_string());
            assert_eq!(read.is_err_and(|text| text.contains(why)), refused, "agent, {listen}");
            std::fs::write(&file, format!("witness: {{ folder: /f, listen: \"{listen}\", {pace}, sites: [a, b] }}"))
                .unwrap();
            let read = WitnessConfig::read(&file).map_err(|error| error.to_string());
            assert_eq!(read.is_err_and(|text| text.contains(why)), refused, "witness, {listen}");
        }
    }
}
