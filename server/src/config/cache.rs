//! `cache:` in a configuration file.

use std::time::Duration;

use camino::Utf8PathBuf;
use textnlp_net::redis::redis_url;

use super::document::Section;
use super::units::{ByteSize, Span};

/// The cache of vectors of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The most memory of vectors in this server.
    pub size: ByteSize,
    /// The Redis that several servers share.
    pub redis: Option<RedisCache>,
}

/// The second level of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisCache {
    /// Its address.
    pub at: RedisAt,
    /// The authorities that its certificate is verified by, with TLS.
    pub trust: RedisTrust,
    /// How long it keeps a vector.
    pub ttl: Duration,
    /// The most connections of this server.
    pub max_connections: usize,
}

/// Where the address of a Redis is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAt {
    /// Here: it has no password.
    Url(String),
    /// In a file, because it may have a password.
    File(Utf8PathBuf),
}

/// The authorities that sign the certificate of a Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisTrust {
    /// The public ones, and those of this machine.
    Public,
    /// Those and the ones in a file.
    PublicAnd(Utf8PathBuf),
    /// Those in a file and no others, for a Redis with authorities of its own: any certificate of them is accepted for an
    /// address, whatever name it is for.
    Only(Utf8PathBuf),
}

#[derive(Clone, Copy)]
enum Kind {
    None,
    Memory,
    Redis,
}

/// The least and the most bytes of vectors in memory.
const SIZE: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 40);
/// The memory of a file that names none.
const USUAL_SIZE: ByteSize = ByteSize(64 << 20);
/// How long a Redis keeps vectors.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(365 * 86_400);
const USUAL_TTL: Duration = Duration::from_secs(86_400);
const MAX_CONNECTIONS: u64 = 1000;
const USUAL_CONNECTIONS: u64 = 8;

pub(super) fn cache(section: Section<'_>) -> Option<Cache> {
    let kinds = [("none", Kind::None), ("memory", Kind::Memory), ("redis", Kind::Redis)];
    let kind = section.word("kind", &kinds).unwrap_or(Kind::None);
    let size = section.parsed::<ByteSize>("size").unwrap_or(USUAL_SIZE);
    if !SIZE.contains(&size.0) {
        section.wrong("size", "must be from 1MiB to 1TiB", None);
    }
    let ttl = section.parsed::<Span>("ttl").map_or(USUAL_TTL, |span| span.0);
    if !TTL.contains(&ttl) {
        section.wrong("ttl", "must be from 1s to 365d", None);
    }
    let max_connections = section.integer("max_connections", 1..=MAX_CONNECTIONS).unwrap_or(USUAL_CONNECTIONS) as usize;
    let (url, file) = (section.text("url"), section.text("url_file").map(Utf8PathBuf::from));
    let at = match (url, file) {
        (Some(_), Some(_)) => {
            section.wrong("url_file", "cannot be combined with `url`", Some("keep one of them".to_owned()));
            None
        }
        (Some(url), None) => {
            match redis_url(&url) {
                Err(error) => section.wrong("url", error.cause, Some(error.fix.to_owned())),
                Ok(url) if url.password().is_some() => {
                    let hint = "write the address into a file, and name the file in `url_file`".to_owned();
                    section.wrong("url", "has a password", Some(hint));
                }
                Ok(_) => {}
            }
            Some(RedisAt::Url(url))
        }
        (None, Some(file)) => Some(RedisAt::File(file)),
        (None, None) => None,
    };
    let (authority, further) = (section.text("authority_file"), section.text("ca_file"));
    for (key, there) in [("authority_file", authority.is_some()), ("ca_file", further.is_some())] {
        if there && !matches!(kind, Kind::Redis) {
            section.wrong(key, "has no effect", Some("write `kind: redis`, or omit it".to_owned()));
        }
    }
    let trust = match (authority, further) {
        (None, None) => RedisTrust::Public,
        (None, Some(file)) => RedisTrust::PublicAnd(file.into()),
        (Some(file), None) => RedisTrust::Only(file.into()),
        (Some(file), Some(_)) => {
            section.wrong("ca_file", "cannot be combined with `authority_file`", Some("keep one of them".to_owned()));
            RedisTrust::Only(file.into())
        }
    };
    let redis = match (kind, at) {
        (Kind::Redis, Some(at)) => Some(RedisCache { at, trust, ttl, max_connections }),
        (Kind::Redis, None) => {
            if !section.has("url") && !section.has("url_file") {
                section.wrong("url", "is missing", Some("write `redis://HOST:6379/0`, or `url_file`".to_owned()));
            }
            None
        }
        (Kind::None | Kind::Memory, at) => {
            if at.is_some() {
                let key = if section.has("url") { "url" } else { "url_file" };
                section.wrong(key, "has no effect", Some("write `kind: redis`, or omit it".to_owned()));
            }
            None
        }
    };
    section.finish();
    match kind {
        Kind::None => None,
        Kind::Memory | Kind::Redis => Some(Cache { size, redis }),
    }
}
