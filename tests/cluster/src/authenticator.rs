//! Token authentication by webhook, as clusters of clouds have it: the test decides whose a token is, the real API server asks.

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use serde_json::{Value, json};

use crate::tls;

/// The user and the groups of a token; `None` if it is unknown.
type Identify = Box<dyn Fn(&str) -> Option<(String, Vec<String>)> + Send + Sync>;

/// Answers token reviews. Until a test says otherwise, no token is known.
#[derive(Clone, Default)]
pub(crate) struct Authenticator(Arc<Mutex<Vec<Identify>>>);

impl Authenticator {
    /// Asks `identify` as well.
    pub(crate) fn add(&self, identify: Identify) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(identify);
    }

    /// Answers until the test program ends; returns the port.
    pub(crate) fn start(&self, trusted: (String, String)) -> u16 {
        let (tell, told) = std::sync::mpsc::channel();
        let known = self.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("start a runtime").block_on(async {
                let port = tls::serve(&trusted, move |_, body| {
                    let known = known.clone();
                    async move {
                        // A test may ask a server of its own, and waits for the answer.
                        let answer = tokio::task::spawn_blocking(move || known.answer(&body)).await;
                        ("200 OK", "application/json", answer.unwrap_or_default())
                    }
                    .boxed()
                });
                tell.send(port.await).expect("the caller waits");
                std::future::pending::<()>().await;
            });
        });
        told.recv().expect("the authenticator starts")
    }

    fn answer(&self, body: &[u8]) -> String {
        let review: Value = serde_json::from_slice(body).unwrap_or_default();
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = match known.iter().find_map(|identify| identify(token)) {
            Some((user, groups)) => json!({ "authenticated": true, "user": { "username": user, "groups": groups } }),
            None => json!({ "authenticated": false }),
        };
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status }).to_string()
    }
}
