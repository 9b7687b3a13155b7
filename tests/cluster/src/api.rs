//! A plain client: paths in, JSON out. What tests look at and change behind the provider's back.

use camino::Utf8Path;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

/// A user's way to the API server. Made within a tokio runtime.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
}

/// What the API server answers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The document, or `Null` where it was none.
    pub body: Value,
}

impl Answer {
    /// The document of an answer that must be a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.status < 300, "{}: {}", self.status, self.body);
        self.body
    }
}

impl Api {
    /// A client for a kubeconfig file that we wrote.
    pub fn new(kubeconfig: &Utf8Path) -> Self {
        let config = Kubeconfig::read_from(kubeconfig).expect("read a kubeconfig of ours");
        let config =
            futures::executor::block_on(kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()));
        let mut config = config.expect("use a kubeconfig of ours");
        config.default_retry = false;
        Self { client: kube::Client::try_from(config).expect("make a client") }
    }

    /// One call. A patch is a merge patch unless its path says that it is an apply.
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

    /// What is at a path; `None` when nothing is.
    pub async fn get(&self, path: &str) -> Option<Value> {
        let answer = self.call("GET", path, None).await.expect("reach the API server");
        (answer.status != 404).then(|| answer.ok())
    }
}
