//! The second level: a Redis that all servers share. Whatever it does, requests are answered: what it does not give in
//! time is computed.

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use redis::aio::{AsyncStream, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, RedisError, Value};
use rustls::pki_types::ServerName;
use textnlp_net::client::Url;
use textnlp_net::redis::{REDIS_PORT, RedisUrlError, redis_url};
use textnlp_net::trust::TrustRoots;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::value::{self, Key};
use crate::breaker::{Breaker, BreakerOptions, State};
use crate::config::{RedisAt, RedisCache};

/// For one pipeline of commands, with its connection.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long a Redis that failed is left alone. Then one request tries it.
const PAUSE: Duration = Duration::from_secs(5);
/// The largest file of an address, in bytes.
const MAX_FILE: u64 = 4096;
/// Bytes of values that one pipeline reads or writes at most, of one value at least.
const PIPELINE_BYTES: usize = 1 << 20;
/// The most commands of a pipeline.
const PIPELINE_COMMANDS: usize = 256;
/// The most characters of an error's code that are logged.
const MAX_CODE: usize = 32;

/// Why the cache cannot be used. No text quotes the address, which may have a password.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file of the address.
    #[error("read the address of the Redis, {path}")]
    Read {
        /// Which file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no address of a Redis.
    #[error("the address of the Redis in {place} cannot be used: {problem}")]
    Unusable {
        /// The file, or the setting.
        place: String,
        /// What is wrong.
        problem: RedisUrlError,
    },
}

/// Why Redis gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It failed a moment ago and is left alone.
    Paused,
    /// No answer in time.
    Timeout,
    /// It cannot be reached, or the connection broke.
    Connection(io::ErrorKind),
    /// It answered with an error. The text of the error is not kept: it may quote commands, and one of them has the
    /// password.
    Refused(String),
}

impl Failure {
    /// For the metric; `None` is counted already.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Paused => None,
            Self::Timeout => Some("timeout"),
            Self::Connection(_) => Some("connection"),
            Self::Refused(_) => Some("refused"),
        }
    }

    /// For the log.
    fn reason(&self) -> String {
        match self {
            Self::Paused => "it failed a moment ago".to_owned(),
            Self::Timeout => format!("no answer within {} ms", TIMEOUT.as_millis()),
            Self::Connection(kind) => format!("the connection failed: {kind}"),
            Self::Refused(code) => format!("it answered with the error {code}"),
        }
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        if error.is_timeout() {
            return Self::Timeout;
        }
        if error.is_io_error() || error.is_connection_dropped() {
            return Self::Connection(io::ErrorKind::ConnectionReset);
        }
        let code = error.code().map_or_else(|| format!("{:?}", error.kind()), str::to_owned);
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || "()_-".contains(*c);
        Self::Refused(code.chars().take_while(is_plain).take(MAX_CODE).collect())
    }
}

/// Connections to a Redis.
pub(super) struct Redis {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// User, password and number of the database. `Debug` does not show the password.
    login: RedisConnectionInfo,
    ttl: Duration,
    /// A permit for each connection.
    room: Semaphore,
    idle: Mutex<Vec<MultiplexedConnection>>,
    breaker: Mutex<Breaker>,
}

impl Redis {
    /// Reads the address. Connects when it is first used.
    pub(super) fn new(settings: &RedisCache) -> Result<Self, CacheError> {
        let (text, place) = match &settings.at {
            RedisAt::Url(url) => (url.clone(), "cache.url".to_owned()),
            RedisAt::File(path) => (read(path)?, path.to_string()),
        };
        let unusable = |problem| CacheError::Unusable { place: place.clone(), problem };
        let url = redis_url(text.trim()).map_err(&unusable)?;
        let login = login(&url).map_err(&unusable)?;
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match url.scheme() {
            "rediss" => {
                let cause = "the host is neither a DNS name nor an address, which TLS verifies";
                let problem = RedisUrlError { cause, fix: "write the name of its certificate" };
                let name = ServerName::try_from(host.clone()).map_err(|_| unusable(problem))?;
                Some((TlsConnector::from(Arc::new(TrustRoots::public().client_config())), name))
            }
            _ => None,
        };
        Ok(Self {
            host,
            port: url.port().unwrap_or(REDIS_PORT),
            tls,
            login,
            ttl: settings.ttl,
            room: Semaphore::new(settings.max_connections),
            idle: Mutex::default(),
            breaker: Mutex::new(Breaker::new(BreakerOptions { failure_threshold: 1, recovery_timeout: PAUSE })),
        })
    }

    /// How many keys one call of [`Redis::get`] or [`Redis::put`] takes, with values of this many numbers.
    pub(super) fn most(width: usize) -> usize {
        (PIPELINE_BYTES / value::value_bytes(width)).clamp(1, PIPELINE_COMMANDS)
    }

    /// The values of keys, in their order; an empty one is missing. No value is longer than one with this many numbers
    /// and a byte more.
    pub(super) async fn get(&self, keys: &[Key], width: usize) -> Result<Vec<Vec<u8>>, Failure> {
        let mut pipeline = Pipeline::with_capacity(keys.len());
        for key in keys {
            // A part of the value: a value that is longer than any vector takes no memory here.
            pipeline.cmd("GETRANGE").arg(key.name()).arg(0).arg(value::value_bytes(width));
        }
        let bytes = |value| match value {
            Value::BulkString(bytes) => bytes,
            _ => Vec::new(),
        };
        let values = self.call(&pipeline).await?;
        Ok(values.into_iter().map(bytes).collect())
    }

    /// Keeps vectors for the configured time.
    pub(super) async fn put(&self, entries: &[(Key, Arc<[f32]>)]) -> Result<(), Failure> {
        let mut pipeline = Pipeline::with_capacity(entries.len());
        let ttl = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        for (key, vector) in entries {
            pipeline.cmd("SET").arg(key.name()).arg(value::encode(key, vector)).arg("PX").arg(ttl);
        }
        self.call(&pipeline).await.map(drop)
    }

    async fn call(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        if self.breaker().permit(Instant::now()).is_err() {
            return Err(Failure::Paused);
        }
        let result = tokio::time::timeout(TIMEOUT, self.attempt(pipeline)).await.unwrap_or(Err(Failure::Timeout));
        let before = self.breaker().state();
        match &result {
            Ok(_) => {
                self.breaker().succeeded();
                if before != State::Closed {
                    tracing::info!(host = %self.host, "the Redis of the cache answers again");
                }
            }
            Err(failure) => {
                self.breaker().failed(Instant::now());
                // Connections from before it failed are of no use.
                self.idle().clear();
                if before == State::Closed {
                    tracing::warn!(
                        host = %self.host,
                        reason = %failure.reason(),
                        "the Redis of the cache failed: vectors are computed until it answers again"
                    );
                }
            }
        }
        result
    }

    /// Runs a pipeline on an idle connection, else on a new one. The connection is kept if it worked.
    async fn attempt(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        let closed = |_| Failure::Connection(io::ErrorKind::NotConnected);
        let _permit = self.room.acquire().await.map_err(closed)?;
        let idle = self.idle().pop();
        if let Some(mut connection) = idle
            && let Ok(values) = pipeline.query_async::<Vec<Value>>(&mut connection).await
        {
            self.idle().push(connection);
            return Ok(values);
        }
        // Redis closes idle connections too. The commands may be repeated: they read, or write the same again.
        let mut connection = self.connect().await?;
        let values = pipeline.query_async::<Vec<Value>>(&mut connection).await?;
        self.idle().push(connection);
        Ok(values)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        let failed = |error: io::Error| Failure::Connection(error.kind());
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let stream: Pin<Box<dyn AsyncStream + Send + Sync>> = match &self.tls {
            None => Box::pin(tcp),
            Some((connector, name)) => Box::pin(connector.connect(name.clone(), tcp).await.map_err(failed)?),
        };
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(TIMEOUT));
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.login, stream, config).await?;
        // It ends with the connection's last handle, or when the connection breaks.
        tokio::spawn(driver);
        Ok(connection)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<MultiplexedConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Utf8Path) -> Result<String, CacheError> {
    let failed = |source| CacheError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// User, password and number of the database.
fn login(url: &Url) -> Result<RedisConnectionInfo, RedisUrlError> {
    const UNREADABLE: RedisUrlError = RedisUrlError {
        cause: "the user or the password is not text, or the host is a wildcard",
        fix: "write special characters as `%` and two hexadecimal digits, in UTF-8",
    };
    // TLS is not the business of the crate.
    let text = url.as_str().replacen("rediss://", "redis://", 1);
    let info = redis::IntoConnectionInfo::into_connection_info(text).map_err(|_| UNREADABLE)?;
    Ok(info.redis_settings().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<Redis, CacheError> {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("url")).unwrap();
        std::fs::write(&path, text).unwrap();
        Redis::new(&RedisCache { at: RedisAt::File(path), ttl: Duration::from_secs(60), max_connections: 2 })
    }

    #[test]
    fn address_of_redis_is_read_from_its_file_and_never_shown() {
        let redis = at("redis://ada:hunter%32@127.0.0.1:7000/3\n").unwrap();
        assert_eq!((redis.host.as_str(), redis.port, redis.tls.is_none()), ("127.0.0.1", 7000, true));
        assert_eq!(
            (redis.login.username(), redis.login.password(), redis.login.db()),
            (Some("ada"), Some("hunter2"), 3)
        );
        assert!(!format!("{:?}", redis.login).contains("hunter2"));
        let redis = at("rediss://[::1]").unwrap();
        assert_eq!((redis.host.as_str(), redis.port, redis.tls.is_some()), ("::1", REDIS_PORT, true));
        for text in ["", "hunter2", "redis://:hunter2@cache.example.com", "redis://:hunter2%ff@localhost"] {
            let error = at(text).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("cannot be used") && !error.contains("hunter2"), "{text}: {error}");
        }
        let missing = RedisAt::File("/nonexistent/url".into());
        let settings = RedisCache { at: missing, ttl: Duration::from_secs(60), max_connections: 1 };
        assert!(Redis::new(&settings).is_err());
    }

    #[tokio::test]
    async fn redis_that_fails_is_left_alone_for_a_while() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        drop(silent);
        let redis = at(&format!("redis://127.0.0.1:{port}")).unwrap();
        let key = Key::new("acme", &value::Fingerprint([0; 32]), &[1]);
        assert!(matches!(redis.get(&[key], 4).await, Err(Failure::Connection(_) | Failure::Timeout)));
        assert!(matches!(redis.get(&[key], 4).await, Err(Failure::Paused)));
        assert!(matches!(redis.put(&[(key, Arc::from(vec![0.0; 4]))]).await, Err(Failure::Paused)));
    }
}
