//! External admission webhooks: the test decides the answer, the real API server calls them.

use std::sync::Arc;

use futures::FutureExt;
use serde_json::{Value, json};

use crate::tls;

/// The answer to an admission review.
pub enum Verdict {
    /// Admit the object unchanged.
    Allow,
    /// Reject it, for this reason.
    Deny(String),
    /// Change it by a JSON patch (RFC 6902).
    Patch(Value),
}

/// Answers reviews until the test program ends; returns the port.
pub(crate) fn start(trusted: (String, String), decide: impl Fn(&Value) -> Verdict + Send + Sync + 'static) -> u16 {
    let (tell, told) = std::sync::mpsc::channel();
    let decide = Arc::new(decide);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("start a runtime").block_on(async {
            let port = tls::serve(&trusted, move |_, body| {
                let review: Value = serde_json::from_slice(&body).unwrap_or_default();
                let answer = answer(&review, &*decide);
                async move { ("200 OK", "application/json", answer.to_string()) }.boxed()
            });
            tell.send(port.await).expect("somebody waits");
            std::future::pending::<()>().await;
        });
    });
    told.recv().expect("the webhook starts")
}

fn answer(review: &Value, decide: &dyn Fn(&Value) -> Verdict) -> Value {
    use base64::Engine;
    let mut response = json!({ "uid": review["request"]["uid"], "allowed": true });
    match decide(&review["request"]["object"]) {
        Verdict::Allow => {}
        Verdict::Deny(why) => {
            response["allowed"] = json!(false);
            response["status"] = json!({ "message": why });
        }
        Verdict::Patch(patch) => {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(base64::engine::general_purpose::STANDARD.encode(patch.to_string()));
        }
    }
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
}
