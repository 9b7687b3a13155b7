//! The second level: a Redis that all servers share. Whatever it does, requests are answered: what it does not give in
//! time is computed.

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use redis::aio::{AsyncStream, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, RedisError, RedisResult, Value};
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use textnlp_net::client::Url;
use textnlp_net::redis::{REDIS_PORT, RedisUrlError, redis_url};
use textnlp_net::trust::{TrustError, TrustRoots};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::value::{self, Key};
use crate::breaker::{Breaker, BreakerOptions, State};
use crate::config::{RedisAt, RedisCache, RedisTrust};

/// For all reads of a request, and for one pipeline of writes, with its connection.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);
/// How long a Redis that failed is left alone. Then one request tries it.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a call waits for a connection that others use.
const WAIT: Duration = Duration::from_millis(50);
/// The largest file of an address, in bytes.
const MAX_FILE: u64 = 4096;
/// Bytes of values that one pipeline reads or writes at most, of one value at least.
const PIPELINE_BYTES: usize = 1 << 20;
/// The most commands of a pipeline.
const PIPELINE_COMMANDS: usize = 256;
/// The code of the error for a key that has something else than a text.
const WRONG_TYPE: &str = "WRONGTYPE";
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
    /// The file of its authorities.
    #[error("the authorities of the Redis cannot be used")]
    Authority(#[source] TrustError),
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
    /// Other calls use all connections. This says nothing about Redis.
    Busy,
    /// No answer in time.
    Timeout,
    /// It cannot be reached, or the connection broke.
    Connection(io::ErrorKind),
    /// Its certificate was refused, and why.
    Certificate(&'static str),
    /// It answered with an error. The text of the error is not kept: it may quote commands, and one of them has the
    /// password.
    Refused(String),
}

impl Failure {
    /// For the metric; `None` is counted already.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Paused => None,
            Self::Busy => Some("busy"),
            Self::Timeout => Some("timeout"),
            Self::Connection(_) => Some("connection"),
            Self::Certificate(_) => Some("certificate"),
            Self::Refused(_) => Some("refused"),
        }
    }

    /// For the log.
    fn reason(&self) -> String {
        match self {
            Self::Paused => "it failed a moment ago".to_owned(),
            Self::Busy => "all connections are in use".to_owned(),
            Self::Timeout => format!("no answer within {} ms", TIMEOUT.as_millis()),
            Self::Connection(kind) => format!("the connection failed: {kind}"),
            Self::Certificate(why) => format!("its certificate was refused: {why}"),
            Self::Refused(code) => format!("it answered with the error {code}"),
        }
    }
}

impl Failure {
    /// Of a TLS handshake. A certificate is text of the Redis, and is not quoted.
    fn of_handshake(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(problem)) => Self::Certificate(match problem {
                CertificateError::UnknownIssuer => {
                    "no authority that is trusted signed it; for an external Redis `network.private_ca` names others"
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "it is for another name than that of the address"
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
                _ => "it is not valid",
            }),
            _ => Self::Connection(error.kind()),
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

/// The answers to a pipeline, each of which may be an error.
type Answers = Vec<RedisResult<Value>>;

/// Reads or writes. A failure pauses those of one kind: a Redis that is full, or a replica, still answers reads.
struct Calls {
    kind: &'static str,
    breaker: Mutex<Breaker>,
}

impl Calls {
    fn new(kind: &'static str) -> Self {
        let options = BreakerOptions { failure_threshold: 1, recovery_timeout: PAUSE };
        Self { kind, breaker: Mutex::new(Breaker::new(options)) }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that the breaker permitted. When it is dropped, another one may try: its client may have left before it had a
/// result. After a result this changes nothing.
struct Permitted<'c>(&'c Calls);

impl Drop for Permitted<'_> {
    fn drop(&mut self) {
        self.0.breaker().abandoned();
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
    /// A permit for each pipeline of writes: they leave connections to reads, which requests wait for.
    writers: Semaphore,
    idle: Mutex<Vec<MultiplexedConnection>>,
    reads: Calls,
    writes: Calls,
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
                let config = match (&settings.trust, &name) {
                    (RedisTrust::Public, _) => Ok(TrustRoots::public().client_config()),
                    (RedisTrust::PublicAnd(file), _) => {
                        TrustRoots::public_and(Some(file.as_path())).map(|roots| roots.client_config())
                    }
                    // The certificate of an address may lack it.
                    (RedisTrust::Only(file), ServerName::IpAddress(_)) => TrustRoots::config_of_one_server(file),
                    (RedisTrust::Only(file), _) => TrustRoots::only_file(file).map(|roots| roots.client_config()),
                };
                Some((TlsConnector::from(Arc::new(config.map_err(CacheError::Authority)?)), name))
            }
            _ if matches!(settings.trust, RedisTrust::Only(_)) => {
                let cause = "an authority is named, and the address has no TLS";
                return Err(unusable(RedisUrlError { cause, fix: "write `rediss://HOST:PORT`" }));
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
            writers: Semaphore::new((settings.max_connections / 2).max(1)),
            idle: Mutex::default(),
            reads: Calls::new("reads"),
            writes: Calls::new("writes"),
        })
    }

    /// How many keys one call of [`Redis::get`] or [`Redis::put`] takes, with values of this many numbers.
    pub(super) fn most(width: usize) -> usize {
        (PIPELINE_BYTES / value::value_bytes(width)).clamp(1, PIPELINE_COMMANDS)
    }

    /// The values of keys, in their order; `None` is missing. No value is longer than one with this many numbers and a
    /// byte more.
    pub(super) async fn get(
        &self,
        keys: &[Key],
        width: usize,
        until: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        let mut pipeline = Pipeline::with_capacity(keys.len());
        for key in keys {
            // A part of the value: a value that is longer than any vector takes no memory here.
            pipeline.cmd("GETRANGE").arg(key.name()).arg(0).arg(value::value_bytes(width));
        }
        self.call(&self.reads, pipeline, until).await
    }

    /// Keeps vectors for the configured time. Waits for its turn until then.
    pub(super) async fn put(&self, entries: &[(Key, Arc<[f32]>)], until: Instant) -> Result<(), Failure> {
        let turn = tokio::time::timeout_at(until.into(), self.writers.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Failure::Busy) };
        let mut pipeline = Pipeline::with_capacity(entries.len());
        let ttl = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        for (key, vector) in entries {
            pipeline.cmd("SET").arg(key.name()).arg(value::encode(key, vector)).arg("PX").arg(ttl);
        }
        self.call(&self.writes, pipeline, Instant::now() + TIMEOUT).await.map(drop)
    }

    async fn call(
        &self,
        calls: &Calls,
        mut pipeline: Pipeline,
        until: Instant,
    ) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        if calls.breaker().permit(Instant::now()).is_err() {
            return Err(Failure::Paused);
        }
        let _permitted = Permitted(calls);
        let room = tokio::time::timeout(WAIT, self.room.acquire()).await;
        let Ok(Ok(_room)) = room else { return Err(Failure::Busy) };
        // The answers tell them, each for its key.
        pipeline.ignore_errors();
        let answers = tokio::time::timeout_at(until.into(), self.attempt(&pipeline)).await;
        let result = answers.unwrap_or(Err(Failure::Timeout)).and_then(values);
        let before = calls.breaker().state();
        match &result {
            Ok(_) => {
                calls.breaker().succeeded();
                if before != State::Closed {
                    tracing::info!(host = %self.host, calls = calls.kind, "the Redis of the cache answers again");
                }
            }
            Err(failure) => {
                calls.breaker().failed(Instant::now());
                if !matches!(failure, Failure::Refused(_)) {
                    // Connections from before it failed are of no use.
                    self.idle().clear();
                }
                if before == State::Closed {
                    tracing::warn!(
                        host = %self.host,
                        calls = calls.kind,
                        reason = %failure.reason(),
                        "the Redis of the cache failed: it is left alone and tried again, and vectors are computed"
                    );
                }
            }
        }
        result
    }

    /// Runs a pipeline on an idle connection, else on a new one. The connection is kept if it worked.
    async fn attempt(&self, pipeline: &Pipeline) -> Result<Answers, Failure> {
        let idle = self.idle().pop();
        if let Some(mut connection) = idle {
            let answers = pipeline.query_async::<Answers>(&mut connection).await;
            match answers {
                Ok(answers) => {
                    self.idle().push(connection);
                    return Ok(answers);
                }
                // Redis closes idle connections too. The commands may be repeated: they read, or write the same again.
                Err(error) if error.is_io_error() || error.is_connection_dropped() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.connect().await?;
        let answers = pipeline.query_async::<Answers>(&mut connection).await?;
        self.idle().push(connection);
        Ok(answers)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        let failed = |error: io::Error| Failure::Connection(error.kind());
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let stream: Pin<Box<dyn AsyncStream + Send + Sync>> = match &self.tls {
            None => Box::pin(tcp),
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), tcp).await;
                Box::pin(stream.map_err(|error| Failure::of_handshake(&error))?)
            }
        };
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(TIMEOUT));
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.login, stream, config).await?;
        // It ends with the connection's last handle, or when the connection breaks.
        tokio::spawn(driver);
        Ok(connection)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<MultiplexedConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The values in answers, if Redis refused nothing. A key that has something else is a value that is damaged, and fails no
/// others.
fn values(answers: Answers) -> Result<Vec<Option<Vec<u8>>>, Failure> {
    let value = |answer: RedisResult<Value>| match answer {
        Ok(Value::BulkString(bytes)) => Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
        Ok(_) => Ok(None),
        Err(error) if error.code() == Some(WRONG_TYPE) => Ok(Some(Vec::new())),
        Err(error) => Err(Failure::from(error)),
    };
    answers.into_iter().map(value).collect()
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
        Redis::new(&settings(RedisAt::File(path), RedisTrust::Public))
    }

    fn settings(at: RedisAt, trust: RedisTrust) -> RedisCache {
        RedisCache { at, trust, ttl: Duration::from_secs(60), max_connections: 2 }
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
        assert!(Redis::new(&settings(missing, RedisTrust::Public)).is_err());
    }

    #[test]
    fn missing_file_of_authorities_is_named() {
        let file = || Utf8PathBuf::from("/nonexistent/ca.pem");
        for trust in [RedisTrust::Only(file()), RedisTrust::PublicAnd(file())] {
            let at = RedisAt::Url("rediss://10.0.0.3:6378".to_owned());
            let error = Redis::new(&settings(at, trust)).err().unwrap();
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(cause.contains("/nonexistent/ca.pem"), "{error}: {cause}");
        }
    }

    #[tokio::test]
    async fn certificate_of_an_unknown_authority_or_of_another_name_is_refused_with_the_reason() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(folder.path().join("ca.pem")).unwrap();
        std::fs::write(&file, authority.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = rcgen::Issuer::new(authority, key);
        for (certified, trust, wanted) in [
            ("127.0.0.1", RedisTrust::Public, "`network.private_ca`"),
            ("redis.example.com", RedisTrust::PublicAnd(file), "another name"),
        ] {
            let key = rcgen::KeyPair::generate().unwrap();
            let leaf = rcgen::CertificateParams::new(vec![certified.to_owned()]).unwrap();
            let leaf = leaf.signed_by(&key, &issuer).unwrap();
            let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let server = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![leaf.der().clone()], private)
                .unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("rediss://127.0.0.1:{}", listener.local_addr().unwrap().port());
            let redis = Redis::new(&settings(RedisAt::Url(url), trust)).unwrap();
            let serve = async {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = acceptor.accept(stream).await;
            };
            let keys = [self::key()];
            let (found, ()) = tokio::join!(redis.get(&keys, 4, soon()), serve);
            let failure = found.err().unwrap();
            assert!(failure.reason().contains(wanted), "{failure:?}");
            assert_eq!(failure.kind(), Some("certificate"));
        }
    }

    fn key() -> Key {
        Key::new("production", "acme", &value::Fingerprint([0; 32]), &[1])
    }

    fn soon() -> Instant {
        Instant::now() + TIMEOUT
    }

    #[tokio::test]
    async fn redis_that_fails_is_left_alone_for_a_while_by_reads_and_by_writes() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        drop(silent);
        let redis = at(&format!("redis://127.0.0.1:{port}")).unwrap();
        let entry: [(Key, Arc<[f32]>); 1] = [(key(), Arc::from(vec![0.0; 4]))];
        assert!(matches!(redis.get(&[key()], 4, soon()).await, Err(Failure::Connection(_) | Failure::Timeout)));
        assert!(matches!(redis.get(&[key()], 4, soon()).await, Err(Failure::Paused)));
        // Writes find out themselves.
        assert!(matches!(redis.put(&entry, soon()).await, Err(Failure::Connection(_) | Failure::Timeout)));
        assert!(matches!(redis.put(&entry, soon()).await, Err(Failure::Paused)));
    }

    #[tokio::test]
    async fn waiting_for_a_connection_is_no_failure_of_redis() {
        let redis = at("redis://127.0.0.1:1").unwrap();
        let all = redis.room.acquire_many(2).await.unwrap();
        assert!(matches!(redis.get(&[key()], 4, soon()).await, Err(Failure::Busy)));
        assert!(matches!(redis.put(&[(key(), Arc::from(vec![0.0; 4]))], soon()).await, Err(Failure::Busy)));
        assert_eq!((redis.reads.breaker().state(), redis.writes.breaker().state()), (State::Closed, State::Closed));
        drop(all);
    }

    #[tokio::test]
    async fn request_that_ends_while_redis_is_silent_is_no_failure_and_holds_no_connection() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let redis = at(&format!("redis://127.0.0.1:{}", silent.local_addr().unwrap().port())).unwrap();
        let keys = [key()];
        let _accepted = tokio::select! {
            _ = redis.get(&keys, 4, soon()) => panic!("nobody answers"),
            accepted = silent.accept() => accepted.unwrap(),
        };
        assert_eq!((redis.reads.breaker().state(), redis.room.available_permits()), (State::Closed, 2));
        // One that waits for the answer pauses those after it.
        assert!(matches!(redis.get(&keys, 4, Instant::now()).await, Err(Failure::Timeout)));
        assert!(matches!(redis.get(&keys, 4, soon()).await, Err(Failure::Paused)));
    }

    #[test]
    fn trial_of_a_request_that_ended_is_free_for_the_next_one() {
        let calls = Calls::new("reads");
        let now = Instant::now();
        calls.breaker().failed(now);
        let later = now + PAUSE;
        calls.breaker().permit(later).unwrap();
        assert!(calls.breaker().permit(later).is_err());
        drop(Permitted(&calls));
        assert_eq!(calls.breaker().state(), State::Open);
        assert_eq!(calls.breaker().permit(later), Ok(()));
        // One that had a result is not forgotten.
        calls.breaker().succeeded();
        drop(Permitted(&calls));
        assert_eq!(calls.breaker().state(), State::Closed);
    }
}
