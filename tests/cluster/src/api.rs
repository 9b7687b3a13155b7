//! A plain API client: paths in, JSON out. Tests use it to inspect and change objects without the provider.

use camino::Utf8Path;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

/// A user's connection to the API server. It must be created within a tokio runtime.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
}

/// An answer of the API server.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The document, or `Null` without one.
    pub body: Value,
}

impl Answer {
    /// The document of an answer; fails the test unless it is a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.status < 300, "{}: {}", self.status, self.body);
        self.body
    }
}

impl Api {
    /// Creates a client for a kubeconfig of this crate.
    pub fn new(kubeconfig: &Utf8Path) -> Self {
        let config = Kubeconfig::read_from(kubeconfig).expect("read a kubeconfig of ours");
        let config =
            futures::executor::block_on(kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()));
        let mut config = config.expect("use a kubeconfig of ours");
        config.default_retry = false;
        Self { client: kube::Client::try_from(config).expect("make a client") }
    }

    /// Sends one request. A patch is a merge patch, unless its path has the parameters of an apply.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, kube::Error> {
        let kind = match method {
            "PATCH" if path.contains("fieldManager=") => "application/apply-patch+yaml",
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request =
            http::Request::builder().method(method).uri(path).header("content-type", kind).body(Body::from(body));
        let answer = self.client.send(request.expect("a request of ours")).await?;
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect_bytes().await?;
        Ok(Answer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
    }

    /// Reads the object at a path; `None` if there is none.
    pub async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.call("GET", path, None).await.expect("reach the API server");
        (answer.status != 404).then(|| answer.ok())
    }
}
