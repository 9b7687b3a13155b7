//! Addresses of Redis servers.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use crate::client::is_loopback;

/// The port of a Redis whose address names none.
pub const REDIS_PORT: u16 = 6379;

/// The longest address in bytes.
const MAX_LENGTH: usize = 2048;

/// Why a text is not the address of a Redis. It quotes nothing, as the address may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedisUrlError {
    /// What is wrong.
    pub cause: &'static str,
    /// What to write.
    pub fix: &'static str,
}

impl fmt::Display for RedisUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause, self.fix)
    }
}

impl std::error::Error for RedisUrlError {}

/// Reads the address of a Redis: `redis://HOST[:PORT][/NUMBER]`, or `rediss://…` with TLS, both with or without
/// `USER:PASSWORD@`.
///
/// # Errors
///
/// Other schemes and parts, and a password that would leave the private network without TLS.
pub fn redis_url(text: &str) -> Result<Url, RedisUrlError> {
    const FORM: &str = "write `redis://HOST:6379/0`, or `rediss://HOST:6379/0` with TLS";
    let wrong = |cause| Err(RedisUrlError { cause, fix: FORM });
    let Some(url) = Some(text).filter(|text| text.len() <= MAX_LENGTH).and_then(|text| Url::parse(text).ok()) else {
        return wrong("this is not a URL");
    };
    if !matches!(url.scheme(), "redis" | "rediss") {
        return wrong("this is not the address of a Redis");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return wrong("the address has no host");
    }
    if url.host_str().is_some_and(|host| host.contains('%')) {
        return wrong("the host has escaped characters");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("the address has options, which are not supported");
    }
    let number = url.path().strip_prefix('/').unwrap_or_default();
    if number.len() > 4 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return wrong("the path of the address is not the number of a database");
    }
    if url.scheme() == "redis" && url.password().is_some() && !is_private(&url) {
        return Err(RedisUrlError {
            cause: "the password would be sent without TLS",
            fix: "write `rediss://…`; `redis://` with a password is for this machine and private networks",
        });
    }
    Ok(url)
}

/// Whether the host of an address is this machine, has a private address, or a name that only private networks resolve.
pub fn is_private(url: &Url) -> bool {
    const SUFFIXES: [&str; 5] = [".internal", ".local", ".localhost", ".svc", ".home.arpa"];
    if is_loopback(url) {
        return true;
    }
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_private() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_unique_local() || address.is_unicast_link_local(),
        Err(_) => {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            // `134744072` and `0x08080808` are addresses to a resolver.
            let is_name = host.starts_with(|first: char| first.is_ascii_alphabetic());
            (is_name && !host.contains('.')) || SUFFIXES.iter().any(|suffix| host.ends_with(suffix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_redis_are_checked_without_being_quoted() {
        for text in [
            "redis://localhost",
            "redis://127.0.0.1:6379/0",
            "redis://cache.example.com:6379/3",
            "rediss://ada:hunter2@cache.example.com",
            "redis://:hunter2@10.0.0.7/0",
            "redis://:hunter2@[fd00::7]:6380",
            "redis://:hunter2@redis.data.svc:6379",
            "redis://:hunter2@redis:6379",
        ] {
            assert!(redis_url(text).is_ok(), "{text}");
        }
        for (text, cause) in [
            ("hunter2", "not a URL"),
            ("https://hunter2.example.com", "not the address of a Redis"),
            ("redis:hunter2", "no host"),
            ("redis://h/hunter2", "not the number"),
            ("redis://h/0?password=hunter2", "options"),
            ("rediss://h/0#insecure", "options"),
            ("redis://:hunter2@cache.example.com", "without TLS"),
            ("redis://:hunter2@8.8.8.8", "without TLS"),
            ("redis://:hunter2@134744072", "without TLS"),
            ("redis://:hunter2@0x08080808", "without TLS"),
            ("redis://:hunter2@redis%2e", "escaped characters"),
        ] {
            let error = redis_url(text).unwrap_err().to_string();
            assert!(error.contains(cause) && !error.contains("hunter2"), "{text}: {error}");
        }
    }
}
