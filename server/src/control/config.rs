//! The files of a watch and of a witness.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use textnlp_control::Site;

use super::Error;
use super::beside::PostgresConfig;
use super::copies::CopiesConfig;
use super::dns::DnsConfig;
use crate::config::{Address, PostgresAt};
use crate::gateway;

/// `watch:` of a site.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchConfig {
    /// Which site this is.
    pub site: Site,
    /// The log and what goes with it.
    pub folder: Utf8PathBuf,
    /// Its own socket.
    #[serde(deserialize_with = "address")]
    pub listen: Address,
    /// The other sites, through this site's border.
    #[serde(deserialize_with = "addresses")]
    pub peers: BTreeMap<Site, Address>,
    /// The witness, through this site's border.
    #[serde(deserialize_with = "address")]
    pub witness: Address,
    /// `sqlite:///…`: where the site's replicas read control data; `postgresql://…` where all sites' do; nothing where that is `outside`.
    #[serde(default)]
    pub database: String,
    /// The PostgreSQL of all sites.
    #[serde(default)]
    pub postgres: Option<PostgresConfig>,
    /// The PostgreSQL of somebody else's that all sites store in: nothing of what is in it goes through the log.
    #[serde(default)]
    pub outside: Option<OutsideConfig>,
    /// The key that signs this site's tokens; its public half is told to all sites.
    #[serde(default)]
    pub jwt_key_file: Option<Utf8PathBuf>,
    /// Between two heartbeats.
    pub every_ms: u64,
    /// So many heartbeats long, silence moves nothing.
    pub lost_after: u32,
    /// Whether this site takes a free place without being told.
    pub automatic: bool,
    /// Whether the home site gets its place back without being told.
    pub failback: bool,
    /// The site that is primary when all is well.
    pub home: Site,
    /// Who asks for a free place first; the home site and then by name when absent.
    #[serde(default)]
    pub order: Vec<Site>,
    /// A site that lacks something for longer is said to lag.
    pub max_lag_ms: u64,
    /// Where this site's service answers, when that is elsewhere than this watch: while it does not, this site is as if it were lost.
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
    /// Where the record is.
    pub folder: Utf8PathBuf,
    /// Its socket.
    #[serde(deserialize_with = "address")]
    pub listen: Address,
    /// Everybody.
    pub sites: Vec<Site>,
    /// Who is primary first.
    pub home: Site,
    /// Between two heartbeats.
    pub every_ms: u64,
    /// So many heartbeats long, silence moves nothing.
    pub lost_after: u32,
    /// Shares of traffic when all is well.
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
    /// Its address, or the socket of the border that leads there.
    pub at: gateway::Address,
    /// Who must answer.
    #[serde(default)]
    pub tls: Option<gateway::BackendTls>,
    /// What is asked for; 2xx is an answer.
    pub path: String,
}

/// `watch.outside`: an address, or the file that it lies in, as in `database` of a server.
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
    /// Where it is; the error is an address that is none.
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

impl WatchConfig {
    /// Reads and checks a file.
    pub fn read(file: &Utf8Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            watch: WatchConfig,
        }
        let config = read::<Document>(file)?.watch;
        let sites = config.sites();
        let problems = [
            config.peers.contains_key(&config.site).then(|| format!("`peers` names this site, {}", config.site)),
            (!sites.contains(&config.home)).then(|| format!("`home` is {}, which is no site here", config.home)),
            pace(config.every_ms, config.lost_after),
            (!config.folder.is_absolute()).then(|| "`folder` is not an absolute path".to_owned()),
            config.outside.as_ref().and_then(OutsideConfig::problem),
            match &config.postgres {
                _ if config.outside.is_some() => (config.postgres.is_some() || !config.database.is_empty())
                    .then(|| "`outside` stands beside `database` or `postgres`".to_owned()),
                None => {
                    (!config.database.starts_with("sqlite://")).then(|| "`database` is not `sqlite://…`".to_owned())
                }
                Some(_) => (!config.database.starts_with("postgresql://"))
                    .then(|| "`database` is not `postgresql://…`, and there is `postgres`".to_owned()),
            },
            config
                .service
                .as_ref()
                .filter(|service| !service.path.starts_with('/'))
                .map(|service| format!("`service.path` is `{}`, and a path begins with a slash", service.path)),
            // A log of control data would stay behind with the primary whose service alone is lost.
            (config.service.is_some() && config.outside.is_none())
                .then(|| "`service` is for sites that all store in a database `outside`".to_owned()),
            config.copies.as_ref().and_then(CopiesConfig::problem),
        ];
        checked(file, problems).map(|()| config)
    }

    /// Everybody, those first that ask for a free place first.
    pub fn sites(&self) -> Vec<Site> {
        let mut sites: Vec<Site> = self.peers.keys().chain([&self.site]).cloned().collect();
        let place = |site: &Site| self.order.iter().position(|s| s == site).unwrap_or(usize::MAX);
        sites.sort_by_key(|site| (place(site), *site != self.home, site.clone()));
        sites
    }

    /// Silence shorter than this moves nothing.
    pub fn grace_ms(&self) -> u64 {
        self.every_ms * u64::from(self.lost_after)
    }
}

impl WitnessConfig {
    /// Reads and checks a file.
    pub fn read(file: &Utf8Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            witness: WitnessConfig,
        }
        let config = read::<Document>(file)?.witness;
        let stranger = config.weights.keys().find(|site| !config.sites.contains(site));
        let problems = [
            (config.sites.len() < 2).then(|| "`sites` names fewer than two".to_owned()),
            (!config.sites.contains(&config.home)).then(|| format!("`home` is {}, which is no site here", config.home)),
            stranger.map(|site| format!("`weights` names {site}, which is no site here")),
            pace(config.every_ms, config.lost_after),
            (!config.folder.is_absolute()).then(|| "`folder` is not an absolute path".to_owned()),
        ];
        let dns = config.dns.as_ref().map(|dns| dns.problems(&config.sites, &config.home, &config.weights));
        checked(file, problems.into_iter().chain(dns.into_iter().flatten().map(Some))).map(|()| config)
    }

    /// Silence shorter than this moves nothing.
    pub fn grace_ms(&self) -> u64 {
        self.every_ms * u64::from(self.lost_after)
    }
}

/// Faster than this, a busy machine looks like a lost one; slower, nobody waits for.
fn pace(every_ms: u64, lost_after: u32) -> Option<String> {
    if !(50..=600_000).contains(&every_ms) {
        return Some(format!("`every_ms` is {every_ms}, not from 50 to 600000"));
    }
    (!(2..=100).contains(&lost_after)).then(|| format!("`lost_after` is {lost_after}, not from 2 to 100"))
}

fn checked(file: &Utf8Path, problems: impl IntoIterator<Item = Option<String>>) -> Result<(), Error> {
    let problems: Vec<String> = problems.into_iter().flatten().collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::Config { file: file.to_owned(), why: problems.join("; ") }) }
}

/// No file of ours is near this size.
const MOST: u64 = 1 << 20;

fn read<T: DeserializeOwned>(file: &Utf8Path) -> Result<T, Error> {
    crate::config::read_yaml(file, MOST).map_err(|why| Error::Config { file: file.to_owned(), why })
}

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
    fn a_service_is_watched_where_nothing_but_the_service_can_be_lost() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::try_from(folder.path().join("watch.yaml")).unwrap();
        let read = |more: &str| {
            let watch = "site: a, folder: /f, listen: \"unix:/a\", peers: { b: \"unix:/b\" }, witness: \"unix:/w\", every_ms: 1000, \
                         lost_after: 3, automatic: true, failback: true, home: a, max_lag_ms: 1000";
            std::fs::write(&file, format!("watch: {{ {watch}, {more} }}")).unwrap();
            WatchConfig::read(&file).map_err(|error| error.to_string())
        };
        let outside = "outside: { url_file: /u }";
        let service = |path: &str| format!("service: {{ at: \"unix:/s\", path: \"{path}\" }}");
        assert!(read(&format!("{outside}, {}", service("/ready"))).unwrap().service.is_some());
        let slash = read(&format!("{outside}, {}", service("ready"))).unwrap_err();
        assert!(slash.contains("`service.path` is `ready`, and a path begins with a slash"), "{slash}");
        let inside = read(&format!("database: \"sqlite:///d\", {}", service("/ready"))).unwrap_err();
        assert!(inside.contains("`service` is for sites that all store in a database `outside`"), "{inside}");
    }
}
