//! `dns:` of the witness's file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::Utf8PathBuf;
use serde::Deserialize;
use textnlp_control::Site;

use super::failed::Failed;
use super::message::Wanted;
use super::name::Name;
use super::tsig::{Algorithm, Key};

/// Which name follows the sites, and how.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// The zone's primary name server, by its address: moving DNS needs no DNS.
    pub server: SocketAddr,
    /// The name of the zone.
    pub zone: Name,
    /// The managed name. Other names in the zone are not touched.
    pub name: Name,
    /// How long a resolver may cache an answer, in seconds.
    #[serde(default = "a_minute")]
    pub ttl_seconds: u32,
    /// The TSIG key.
    pub key: DnsKey,
    /// The public addresses of each site.
    pub addresses: BTreeMap<Site, BTreeSet<IpAddr>>,
}

/// A key that the name server has too.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsKey {
    /// The name of the key at the name server.
    pub name: Name,
    /// The signature algorithm.
    pub algorithm: Algorithm,
    /// The file with the secret in base64. It is read for each attempt, so a changed one needs no restart.
    pub secret_file: Utf8PathBuf,
}

fn a_minute() -> u32 {
    60
}

/// Maximum addresses per name, so that an update fits into a datagram.
const MOST_ADDRESSES: usize = 16;
const LONGEST_TTL: u32 = 86_400;
/// HMAC with less is guessed; name servers make 32 bytes.
const SHORTEST_SECRET: usize = 16;
/// Maximum size of the secret file, in bytes.
const LONGEST_SECRET_FILE: u64 = 4096;

impl DnsConfig {
    /// The problems with the settings, given the witness's sites, its home site and its traffic weights.
    pub(in super::super) fn problems(&self, sites: &[Site], home: &Site, weights: &BTreeMap<Site, u32>) -> Vec<String> {
        let mut problems = Vec::new();
        let mut wrong = |is: bool, what: String| problems.extend(is.then_some(what));
        wrong(!self.zone.0.zone_of(&self.name.0), format!("`dns.name` {} is not in {}", self.name, self.zone));
        let ttl = self.ttl_seconds;
        wrong(!(1..=LONGEST_TTL).contains(&ttl), format!("`dns.ttl_seconds` is {ttl}, not from 1 to {LONGEST_TTL}"));
        wrong(!self.key.secret_file.is_absolute(), "`dns.key.secret_file` is not an absolute path".to_owned());
        wrong(self.server.port() == 0, "`dns.server` has port 0".to_owned());
        for site in self.addresses.keys().filter(|site| !sites.contains(site)) {
            wrong(true, format!("`dns.addresses` names {site}, which is not a site of this environment"));
        }
        for site in sites {
            let none = self.addresses.get(site).is_none_or(BTreeSet::is_empty);
            wrong(none, format!("`dns.addresses` has none for {site}, which could not be reached as primary"));
            wrong(!weights.contains_key(site), format!("`weights` lacks {site}, which DNS requires"));
        }
        wrong(
            weights.get(home) == Some(&0),
            format!("`weights` gives {home} no traffic, so the DNS name would have no address"),
        );
        let all: Vec<&IpAddr> = self.addresses.values().flatten().collect();
        wrong(all.len() > MOST_ADDRESSES, format!("`dns.addresses` has {}, more than {MOST_ADDRESSES}", all.len()));
        for (number, address) in all.iter().enumerate() {
            let nowhere = address.is_unspecified() || address.is_multicast();
            wrong(nowhere, format!("`dns.addresses` has {address}, which is not a reachable address"));
            let twice = all[..number].contains(address);
            wrong(twice, format!("`dns.addresses` gives {address} to two sites, so neither could be removed"));
        }
        problems
    }

    /// The addresses of all sites that may have traffic; `None` without any.
    pub(super) fn wanted(&self, weights: &BTreeMap<Site, u32>) -> Option<Wanted> {
        let open = |site: &&Site| weights.get(*site).is_some_and(|weight| *weight > 0);
        let addresses = self.addresses.keys().filter(open).flat_map(|site| &self.addresses[site]);
        Wanted::new(addresses.copied().collect())
    }

    /// Reads the key; only its owner may read the file.
    pub(super) fn key(&self) -> Result<Key, Failed> {
        let DnsKey { name, algorithm, secret_file } = &self.key;
        let refused = |why: &dyn std::fmt::Display| Failed::Secret(format!("{secret_file}: {why}"));
        let found = std::fs::metadata(secret_file).map_err(|error| refused(&error))?;
        if found.mode() & 0o077 != 0 {
            return Err(refused(&format!("other users may read it, its mode is {:o}", found.mode() & 0o777)));
        }
        if !found.is_file() || found.len() > LONGEST_SECRET_FILE {
            return Err(refused(&"it is not a small regular file"));
        }
        let text = std::fs::read_to_string(secret_file).map_err(|error| refused(&error))?;
        // The decoder's error would reveal parts of the secret.
        let secret = STANDARD.decode(text.trim()).map_err(|_| refused(&"its content is not base64"))?;
        if secret.len() < SHORTEST_SECRET {
            return Err(refused(&format!("it has {} bytes, fewer than {SHORTEST_SECRET}", secret.len())));
        }
        Ok(Key::new(name.0.clone(), *algorithm, secret))
    }
}
