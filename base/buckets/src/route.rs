//! The authorities and proxies of connections to buckets, and to the services that give credentials for them.

use std::time::Duration;

use async_trait::async_trait;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use object_store::{ClientConfigKey, ClientOptions};
use textnlp_net::client::{ProxySettings, build, same_host};
use textnlp_net::trust::TrustRoots;

use crate::CONNECT;

/// The authorities and proxies of connections.
#[derive(Debug, Clone)]
pub struct Route {
    /// The authorities.
    pub trust: TrustRoots,
    /// The proxies.
    pub proxy: ProxySettings,
}

/// Connects to buckets, and to the services that give credentials for them.
#[derive(Debug)]
pub struct Connector {
    /// The caller's route.
    pub own: Route,
    /// A host with a route of its own: what an environment file names is for the host that the same file names.
    pub of_host: Option<(String, Route)>,
    /// The timeout of a request with its answer.
    pub timeout: Option<Duration>,
    /// The timeout of an answer that brings nothing.
    pub idle_timeout: Option<Duration>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let own = self.client(&self.own, options)?;
        let of_host = self.of_host.as_ref();
        let of_host = of_host.map(|(host, route)| self.client(route, options).map(|client| (host.clone(), client)));
        Ok(HttpClient::new(ByHost { own, of_host: of_host.transpose()? }))
    }
}

impl Connector {
    fn client(&self, route: &Route, options: &ClientOptions) -> object_store::Result<reqwest::Client> {
        // The crate shortens this timeout for metadata services, which are local or do not exist.
        let seconds = options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let seconds = seconds.and_then(|text| text.strip_suffix('s')?.parse().ok());
        let net = textnlp_net::client::ClientOptions {
            trust: route.trust.clone(),
            proxy: route.proxy.clone(),
            connect_timeout: seconds.map_or(CONNECT, Duration::from_secs),
            idle_timeout: self.idle_timeout,
            timeout: self.timeout,
        };
        let is_https_only = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() != Some("true");
        let builder = net.builder().map(|builder| builder.redirect(same_host()).http1_only().https_only(is_https_only));
        let client = builder.and_then(build);
        client.map_err(|error| object_store::Error::Generic { store: "HTTP", source: error.into() })
    }
}

/// Clients of a bucket.
#[derive(Debug)]
struct ByHost {
    own: reqwest::Client,
    of_host: Option<(String, reqwest::Client)>,
}

#[async_trait]
impl HttpService for ByHost {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let client = match &self.of_host {
            Some((host, client)) if request.uri().host().is_some_and(|to| to.eq_ignore_ascii_case(host)) => client,
            _ => &self.own,
        };
        client.call(request).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
    use object_store::azure::MicrosoftAzureBuilder;
    use object_store::path::Path;
    use object_store::{ObjectStoreExt, RetryConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A proxy that finds nothing, with the first lines of the requests that it gets.
    async fn proxy() -> (Route, Arc<Mutex<Vec<String>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sees = seen.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
                sees.lock().unwrap().push(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned());
                let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
            }
        });
        let proxy = ProxySettings { http: Some(proxy.clone()), https: Some(proxy), ..ProxySettings::default() };
        (Route { trust: TrustRoots::none(), proxy }, seen)
    }

    #[tokio::test]
    async fn the_proxy_of_a_host_is_for_that_host_and_for_no_credential() {
        let ((own, seen), (of_host, seen_by_host)) = (proxy().await, proxy().await);
        let connector = || Connector {
            own: own.clone(),
            of_host: Some(("store.invalid".to_owned(), of_host.clone())),
            timeout: Some(Duration::from_secs(60)),
            idle_timeout: None,
        };
        let retry = || RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let azure = MicrosoftAzureBuilder::new().with_http_connector(connector()).with_allow_http(true);
        let azure = azure.with_endpoint("http://store.invalid".to_owned()).with_account("a").with_access_key("a2V5");
        let missing = azure.with_container_name("c").build().unwrap().get(&Path::from("x")).await;
        assert!(matches!(missing, Err(object_store::Error::NotFound { .. })), "{missing:?}");
        let s3 = AmazonS3Builder::new().with_http_connector(connector()).with_bucket_name("b");
        let s3 = s3.with_metadata_endpoint("http://metadata.google.internal").with_retry(retry());
        s3.build().unwrap().get(&Path::from("x")).await.unwrap_err();
        assert!(seen.lock().unwrap().is_empty(), "no proxy reaches a metadata service");
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "eyJ0").unwrap();
        let s3 = AmazonS3Builder::new().with_http_connector(connector()).with_bucket_name("b").with_allow_http(true);
        let s3 = s3.with_endpoint("http://store.invalid").with_retry(retry());
        let s3 = s3
            .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token.to_str().unwrap())
            .with_config(AmazonS3ConfigKey::RoleArn, "arn:aws:iam::1:role/r")
            .with_config(AmazonS3ConfigKey::StsEndpoint, "https://sts.invalid");
        s3.build().unwrap().get(&Path::from("x")).await.unwrap_err();
        let seen = seen.lock().unwrap();
        assert!(seen.len() == 1 && seen[0].starts_with("CONNECT sts.invalid:443"), "{seen:?}");
        assert_eq!(*seen_by_host.lock().unwrap(), ["GET http://store.invalid/c/x HTTP/1.1"]);
    }
}
