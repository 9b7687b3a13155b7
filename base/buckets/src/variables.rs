//! The variables that clouds' programs read: credentials, regions, addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read as _;
use std::str::FromStr;

use reqwest::header::HeaderValue;
use textnlp_net::client::{Url, is_loopback};

use crate::Scheme;

/// Names a file with a token of AWS.
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
/// The longest token that is looked at, in bytes.
const TOKEN_MAX: u64 = 64 << 10;
/// Variables whose values become headers of requests.
const IN_HEADERS: [&str; 4] = ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "IDENTITY_HEADER", "MSI_SECRET"];
/// How the names of clouds' variables begin.
const OF_CLOUDS: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];
/// The others that are read.
const OTHERS: [&str; 5] = ["SERVICE_ACCOUNT", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET"];

/// The variables of clouds. Shows names only, because values are credentials.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::of_pairs(std::env::vars_os().filter_map(text))
    }

    /// Those of a list. Variables of others are left out.
    pub fn of_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let pairs = pairs.into_iter().map(|(name, value)| (name.into(), value.into()));
        let is_read = |name: &str| OF_CLOUDS.iter().any(|prefix| name.starts_with(prefix)) || OTHERS.contains(&name);
        Self(pairs.filter(|(name, _)| is_read(name)).collect())
    }

    /// These, and others in place of those of the same names.
    #[must_use]
    pub fn with<N: Into<String>, V: Into<String>>(mut self, others: impl IntoIterator<Item = (N, V)>) -> Self {
        self.0.extend(Self::of_pairs(others).0);
        self
    }

    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The settings of a builder, by the variables that begin with `prefix` and that it knows.
    pub(crate) fn of<'a, K: FromStr + 'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (K, &'a str)> {
        let own = self.0.iter().filter(move |(name, _)| name.starts_with(prefix));
        own.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.as_str())))
    }

    /// The variable with a credential that cannot be sent: the crate panics on it.
    pub(crate) fn unsendable(&self) -> Option<String> {
        let is_sendable = |text: &str| HeaderValue::from_str(text).is_ok();
        let file = self.get(TOKEN_FILE).and_then(|path| {
            let mut text = String::new();
            std::fs::File::open(path).ok()?.take(TOKEN_MAX).read_to_string(&mut text).ok()?;
            Some((TOKEN_FILE, text))
        });
        let values = IN_HEADERS.into_iter().filter_map(|name| Some((name, self.get(name)?.to_owned())));
        values.chain(file).find(|(_, text)| !is_sendable(text)).map(|(name, _)| name.to_owned())
    }

    /// The address of a service, if it is not that of the cloud.
    ///
    /// # Errors
    /// It is no address, or one of another machine without encryption.
    pub fn endpoint(&self, scheme: Scheme) -> Result<Option<&str>, String> {
        let names: &[&str] = match scheme {
            Scheme::S3 => &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"],
            Scheme::Gs => &["GOOGLE_BASE_URL"],
            Scheme::Az => &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"],
        };
        let found = names.iter().find_map(|name| Some((name, self.get(name)?)));
        let Some((name, address)) = found else { return Ok(None) };
        let url: Url = address.parse().map_err(|error| format!("`{address}` of {name} is not a URL ({error})"))?;
        if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback(&url)) {
            return Err(format!("`{address}` of {name} is not encrypted; `http:` is only accepted for this machine"));
        }
        Ok(Some(address))
    }

    /// The hosts in these variables' addresses: services that the caller sends credentials to.
    pub fn hosts(&self) -> BTreeSet<String> {
        // A store with the protocol of S3 gets signatures only.
        let is_of_cloud =
            |name: &str| name != "AWS_ENDPOINT_URL_S3" && OF_CLOUDS.iter().any(|prefix| name.starts_with(prefix));
        let addresses = self.0.iter().filter(|(name, _)| is_of_cloud(name));
        let addresses = addresses.filter_map(|(_, value)| value.parse::<Url>().ok());
        addresses.filter_map(|address| address.host_str().map(str::to_owned)).collect()
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_that_get_credentials() {
        let variables = Variables::of_pairs([
            ("AWS_ENDPOINT_URL_STS", "https://minio.example:9000"),
            ("AZURE_AUTHORITY_HOST", "https://login.example/"),
            ("AWS_ENDPOINT_URL_S3", "https://store.example"),
            ("AWS_REGION", "eu-central-1"),
            ("CI_SERVER_URL", "https://gitlab.example"),
        ]);
        assert_eq!(variables.hosts().into_iter().collect::<Vec<_>>(), ["login.example", "minio.example"]);
    }

    #[test]
    fn addresses_in_the_clear_are_those_of_this_machine() {
        let of = |address: &str| {
            let variables = Variables::of_pairs([("AWS_ENDPOINT_URL_S3", address)]);
            variables.endpoint(Scheme::S3).map(|found| found.map(str::to_owned))
        };
        assert_eq!(of("http://127.0.0.1:9000").unwrap().as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(of("https://minio.example.com").unwrap().as_deref(), Some("https://minio.example.com"));
        assert!(of("http://minio.example.com").unwrap_err().contains("AWS_ENDPOINT_URL_S3 is not encrypted"));
        assert_eq!(Variables::default().endpoint(Scheme::Gs).unwrap(), None);
    }

    #[test]
    fn credentials_that_no_header_can_hold_are_refused_and_none_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        let variables = |content: &str, session: Option<&str>| {
            std::fs::write(&token, content).unwrap();
            let pairs = [(TOKEN_FILE, Some(token.to_str().unwrap())), ("AWS_SESSION_TOKEN", session)];
            Variables::of_pairs(pairs.into_iter().filter_map(|(name, value)| Some((name, value?))))
        };
        assert_eq!(variables("eyJ0", Some("abc")).unsendable(), None);
        assert_eq!(variables("eyJ0\n", None).unsendable().as_deref(), Some(TOKEN_FILE));
        let broken = variables("eyJ0", Some("hunter2\nb"));
        assert_eq!(broken.unsendable().as_deref(), Some("AWS_SESSION_TOKEN"));
        let shown = format!("{broken:?}");
        assert!(shown.contains("AWS_SESSION_TOKEN") && !shown.contains("hunter2"), "{shown}");
    }
}
