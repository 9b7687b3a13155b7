//! Checks of the DNS zone whose records follow the sites, so that the witness can update it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::model::*;
use super::super::problem::{Severity, nearest};
use super::super::units::cut;
use super::recovery::creates_clusters;
use super::serving::is_host_name;
use super::{Catalogue, Checker};

/// With more addresses, an update might exceed one datagram.
const MOST_ADDRESSES: usize = 16;
const LONGEST_TTL: u64 = 86_400;

impl Checker<'_> {
    pub(super) fn dns(&mut self) {
        let e = self.environment;
        let Some(dns) = &e.dns else { return };
        if e.witness_place().is_none() {
            let cause = "the witness updates the DNS records, and this environment has none";
            let fix =
                "name several sites with `dr: { mode: automatic }` and `traffic: { mode: gateway }`, or remove it";
            self.error("dns", cause, fix);
        }
        if dns.server_address().is_none() {
            let cause = format!("`{}` is not the address of a name server", cut(&dns.server));
            self.error(
                "dns.server",
                cause,
                "write an IP address such as `192.0.2.53` or `192.0.2.53:53`: DNS updates must not depend on DNS",
            );
        }
        self.dns_names(dns);
        self.dns_key(&dns.key);
        self.dns_addresses(dns);
        let ttl = e.traffic.ttl.as_seconds();
        if !(1..=LONGEST_TTL).contains(&ttl) {
            let cause = format!("{} is not a valid TTL of a DNS record", e.traffic.ttl);
            self.error("traffic.ttl", cause, "write `1s` to `24h`");
        }
        let home = e.primary().map(|site| site.name.as_str());
        if let Some(home) = home.filter(|home| e.traffic.weights.get(*home) == Some(&0)) {
            let path = format!("traffic.weights.{home}");
            self.error(
                &path,
                "the name would resolve to no address while all sites are healthy",
                "give the primary a weight above 0",
            );
        }
    }

    /// An existing zone at the provider of the site, whose record points at the site.
    pub(super) fn zone(&mut self, catalogue: &Catalogue) {
        let e = self.environment;
        let path = match e.sites.iter().position(|site| site.existing.zone.is_some()) {
            _ if e.traffic.existing.is_some() => "traffic.existing".to_owned(),
            Some(i) => format!("sites[{i}].existing.zone"),
            None => {
                if e.traffic.managed_certificate {
                    let fix = "write `traffic: { existing: ID }`, the zone whose records prove that the name is yours";
                    self.error("traffic.managed_certificate", "no DNS zone is configured", fix);
                }
                return;
            }
        };
        if e.traffic.managed_certificate && e.tls.mode == textnlp_provider::settings::TlsMode::Off {
            let fix = "write `tls: { mode: local-ca }`, for the connection from the load balancer to the servers";
            self.error("traffic.managed_certificate", "the servers accept no TLS", fix);
        }
        if e.traffic.domain.is_none() {
            let fix = "write `traffic: { domain: textnlp.example.com }`, a name in this zone";
            self.error(&path, "the name of the record is not set", fix);
        }
        if e.traffic.domain.as_ref().is_some_and(|domain| domain.starts_with("*.")) {
            let fix = "write the name of the service, and `server.api.base_domain` for the names of tenants";
            self.error("traffic.domain", "clients use one name, and this is a wildcard", fix);
        }
        if e.dns.is_some() {
            self.error(&path, "the witness updates the same name with `dns`", "remove one of the two");
        }
        if e.members().count() < 2 {
            return;
        }
        if e.has_site_records() {
            return self.site_records(catalogue, &path);
        }
        let is_other = e.witness_place().is_some();
        let (cause, fix) = match is_other {
            true => ("the records of several sites are in one zone, that of the primary", "write `traffic.existing`"),
            false => {
                ("several sites serve clients, and do not fail over to one another", "set `dr.mode`, or keep one site")
            }
        };
        self.say(Severity::Refusal, &path, cause, fix);
    }

    /// Sites whose load balancers get weighted records and, where their own addresses are names, a record of each name.
    fn site_records(&mut self, catalogue: &Catalogue, path: &str) {
        let e = self.environment;
        if e.traffic.managed_certificate {
            let cause = "the global endpoint verifies each site with the site's built-in certificate authority";
            self.say(Severity::Refusal, "traffic.managed_certificate", cause, "remove it");
        }
        let support = |site: &SiteSettings| catalogue.providers.get(&site.provider).map(|offer| &offer.capabilities);
        let records = e.primary().and_then(|home| support(home).map(|support| (home, support.site_records)));
        if let Some((home, None)) = records {
            let cause = format!("zones of provider `{}` have no records of several sites", cut(&home.provider));
            let fix = "remove it, and use the global endpoint or `dns`";
            return self.say(Severity::Refusal, path, cause, fix);
        }
        let takes_names = records.and_then(|(_, records)| records).is_none_or(|records| records.takes_names);
        let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
        let mut taken: BTreeMap<String, String> = BTreeMap::new();
        taken.extend(e.traffic.domain.iter().map(|domain| (plain(domain), "traffic.domain".to_owned())));
        for (i, site) in e.sites.iter().enumerate().filter(|(_, site)| site.serves()) {
            if site.existing.zone.is_some() && site.role != Role::Primary {
                let cause = "the records of several sites are in one zone, that of the primary";
                self.error(&format!("sites[{i}].existing.zone"), cause, "remove it");
            }
            let accounts = e.primary().and_then(|home| Some((home, home.account.as_ref()?, site.account.as_ref()?)));
            if accounts.is_some_and(|(home, its, own)| home.provider == site.provider && its != own) {
                let cause = "the zone is in the account of the primary, which this site has no access to";
                self.say(Severity::Refusal, &format!("sites[{i}].account"), cause, "write the account of the primary");
            }
            if !site.is_in_cluster() {
                let cause = format!("site `{}` is not in a cluster and has no load balancer for a record", site.name);
                self.say(Severity::Refusal, path, cause, "remove it, and use `dns`");
                continue;
            }
            if !catalogue.providers.is_empty() && !creates_clusters(catalogue, site) {
                let cause = format!(
                    "load balancers in clusters of provider `{}` have names or addresses, and a record needs to know which",
                    cut(&site.provider)
                );
                self.say(Severity::Refusal, path, cause, "remove it, and use `dns`");
            }
            if !takes_names && support(site).is_some_and(|support| support.names_balancers) {
                let cause = format!(
                    "load balancers of provider `{}` have names and no fixed addresses, and weighted records of this zone have addresses",
                    cut(&site.provider)
                );
                let fix = "remove `traffic.existing`, and use the global endpoint, or make a site of this provider the primary";
                self.say(Severity::Refusal, &format!("sites[{i}].provider"), cause, fix);
            }
            // Its address is checked with those of the sites that fail over.
            let Some(host) = site.cluster.host() else { continue };
            if !site.cluster.load_balancer {
                let cause = "a record needs the load balancer of the site's cluster";
                self.error(&format!("sites[{i}].cluster.load_balancer"), cause, "write `load_balancer: true`");
            }
            let at = format!("sites[{i}].cluster.address");
            if let Some(first) = taken.insert(plain(&host), at.clone()).filter(|_| host.parse::<IpAddr>().is_err()) {
                let cause = format!("`{}` is also the name of `{first}`", cut(&host));
                self.error(&at, cause, "give each site a name of its own in the zone");
            }
        }
    }

    fn dns_names(&mut self, dns: &Dns) {
        let e = self.environment;
        let is_name = |name: &str| is_host_name(name) && name.parse::<IpAddr>().is_err() && !name.starts_with("*.");
        for (path, name) in [("dns.zone", &dns.zone), ("dns.key.name", &dns.key.name)] {
            if !is_name(name) {
                self.error(path, format!("`{}` is not a DNS name", cut(name)), "write one such as `example.com`");
            }
        }
        let Some(domain) = &e.traffic.domain else {
            let fix = format!("write `traffic: {{ domain: textnlp.{} }}`", cut(&dns.zone));
            return self.error("traffic.domain", "the zone needs the name that clients use", fix);
        };
        let lower = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
        let (name, zone) = (lower(domain), lower(&dns.zone));
        if name != zone && !name.ends_with(&format!(".{zone}")) {
            let cause = format!("`{}` is not in the zone `{}`", cut(domain), cut(&dns.zone));
            self.error("traffic.domain", cause, format!("write a name that ends in `.{}`", cut(&dns.zone)));
        }
    }

    fn dns_key(&mut self, key: &DnsKey) {
        if let SecretSource::File(path) = &key.secret
            && !path.starts_with('/')
        {
            let cause = format!("`{}` is not an absolute path, and the witness runs in another folder", cut(path));
            self.error("dns.key.secret", cause, "write a path that begins with `/`");
        }
        // A missing secret is reported with all other references. The value is never repeated.
        if key.secret.read().is_some_and(|text| !is_secret(text.trim())) {
            let cause = "the secret is not a TSIG key";
            let fix = "store only the secret in base64, with at least 16 bytes: `tsig-keygen` prints one";
            self.say(Severity::Refusal, "dns.key.secret", cause, fix);
        }
    }

    fn dns_addresses(&mut self, dns: &Dns) {
        let e = self.environment;
        let sites: Vec<&str> = e.members().map(|site| site.name.as_str()).collect();
        for site in dns.addresses.keys().filter(|site| !sites.contains(&site.as_str())) {
            let near = nearest(site, sites.iter().copied());
            let fix = near.map_or_else(
                || format!("the sites that serve are `{}`", sites.join("`, `")),
                |near| format!("did you mean `{near}`?"),
            );
            let path = format!("dns.addresses.{}", cut(site));
            self.error(&path, format!("`{}` is not a site that serves", cut(site)), fix);
        }
        for site in &sites {
            if dns.addresses.get(*site).is_none_or(Vec::is_empty) {
                let cause = format!("{site} has no address, so clients could not reach it as primary");
                self.error(
                    "dns.addresses",
                    cause,
                    format!("add `{site}: [192.0.2.1]` with the address that clients use"),
                );
            }
        }
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (site, addresses) in &dns.addresses {
            for (number, text) in addresses.iter().enumerate() {
                let path = format!("dns.addresses.{}[{number}]", cut(site));
                let Ok(address) = text.parse::<IpAddr>() else {
                    let cause = format!("`{}` is not an IP address", cut(text));
                    self.error(&path, cause, "write one such as `192.0.2.1` or `\"2001:db8::1\"`");
                    continue;
                };
                if address.is_unspecified() || address.is_multicast() {
                    self.error(
                        &path,
                        format!("{address} cannot be the address of a site"),
                        "write the address that clients use",
                    );
                }
                if let Some(other) = seen.insert(address, site) {
                    let cause =
                        format!("{} also has {address}, so neither could be removed from DNS on its own", cut(other));
                    self.error(&path, cause, "give each site its own address");
                }
            }
        }
        if seen.len() > MOST_ADDRESSES {
            let cause = format!("{} addresses do not fit into one update", seen.len());
            self.error("dns.addresses", cause, format!("name at most {MOST_ADDRESSES}"));
        }
    }
}

/// Whether a text is base64 of at least 16 bytes.
fn is_secret(text: &str) -> bool {
    let letters = text.trim_end_matches('=');
    let plain = letters.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    plain && text.len().is_multiple_of(4) && text.len() - letters.len() <= 2 && letters.len() * 6 / 8 >= 16
}

#[cfg(test)]
mod tests {
    use super::is_secret;

    #[test]
    fn tsig_secret_must_be_base64_of_sufficient_length() {
        for good in ["dGhpcyBpcyBhIGtleSBmb3IgdGVzdHMgb25seSwgMzIgYg==", "AAAAAAAAAAAAAAAAAAAAAA=="] {
            assert!(is_secret(good), "{good}");
        }
        for bad in
            ["", "hunter2", "AAAAAAAAAAAAAAAAAAAA", "dGhpcyBpcyBhIGtleSBmb3IgdGVzdHMgb25seSwgMzIgYg", "a b=", "===="]
        {
            assert!(!is_secret(bad), "{bad}");
        }
    }
}
