//! The certificate of a public authority: what it is lowered to, and what happens while the authority does not answer.

use std::collections::BTreeMap;

use crate::machine::Machine;
use crate::parts::name;
use serde_json::json;
use textnlp_provider::component::{AcmeAccount, ComponentSpec, SecretRecipe};
use textnlp_provider::settings::TlsMode;
use textnlp_provider::{Observed, ResourceId, Wanted};

const PUBLIC: &str = "here/certificate/public";

/// A site with a public certificate of an authority that is not there.
fn machine() -> Machine {
    let mut machine = Machine::new(1);
    (machine.endpoint().tls, machine.endpoint().acme) = (true, true);
    for component in &mut machine.components {
        match &mut component.part {
            ComponentSpec::Certificate(certificate) => {
                certificate.mode = TlsMode::Acme;
                certificate.names = vec!["B.example".to_owned(), "a.example".to_owned()];
                certificate.acme = Some(Box::new(AcmeAccount {
                    directory: "https://127.0.0.1:1/directory".to_owned(),
                    email: None,
                    secrets: name("secrets"),
                    key: "acme-account".to_owned(),
                    gateway: name("gateway"),
                    ca_file: None,
                    proxy: BTreeMap::new(),
                }));
            }
            ComponentSpec::Secrets(secrets) => {
                secrets.generate.insert("acme-account".to_owned(), SecretRecipe::AccountKey);
            }
            _ => {}
        }
    }
    machine
}

fn find<'a>(wanted: &'a [Wanted], id: &str) -> Option<&'a Wanted> {
    wanted.iter().find(|wanted| wanted.id.as_str() == id)
}

#[test]
fn public_certificate_is_ordered_after_the_gateway_answers_challenges() {
    let wanted = machine().wanted();
    let public = find(&wanted, PUBLIC).unwrap();
    assert_eq!(public.spec.get("names"), Some(&json!(["a.example", "b.example"])));
    let needs: Vec<&str> = public.needs.iter().map(|need| need.on.as_str()).collect();
    assert_eq!(needs, ["here/gateway/process", "here/secrets/acme-account"]);
    let config = |wanted: &[Wanted]| {
        find(wanted, "here/gateway/config").unwrap().spec.as_value()["document"]["gateway"]["tls"]["public"].clone()
    };
    let challenges = config(&wanted)["challenges"].as_str().unwrap().to_owned();
    assert!(challenges.ends_with("/sites/here/certs/challenges"), "{challenges}");
    assert!(find(&wanted, "here/certificate/authority").is_some(), "for clients that connect by an address");
    let mut other = Machine::new(1);
    other.endpoint().tls = true;
    assert!(find(&other.wanted(), PUBLIC).is_none() && config(&other.wanted()).is_null());
}

#[tokio::test]
async fn authority_that_does_not_answer_fails_up_and_no_program_stops() {
    let mut machine = machine();
    let failed = machine.try_up().await.unwrap_err();
    assert!(failed.contains(PUBLIC) && failed.contains("127.0.0.1:1"), "{failed}");
    let gateway = machine.pid_of("gateway").await;
    machine
        .wait_until("the reason is in the status", async |machine| {
            let certificates = machine.status().await.certificates;
            let public = certificates.iter().find(|one| one.file == "certs/public.pem");
            public.is_some_and(|public| public.error.is_some() && public.not_after.is_none())
        })
        .await;
    let seen = machine.observe().await;
    assert!(
        matches!(&seen[&ResourceId::new(PUBLIC).unwrap()], Observed::Present(object) if object.health != textnlp_provider::Health::Ready)
    );
    // The operator's next `up` does not wait for the time of the next attempt.
    let record = machine.folder().join("certs/acme-record.json");
    let attempts =
        || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&record).unwrap()).unwrap()["attempts"].clone();
    assert_eq!(attempts(), 1);
    assert!(machine.try_up().await.unwrap_err().contains(PUBLIC));
    assert_eq!(attempts(), 2);
    assert_eq!(machine.pid_of("gateway").await, gateway);
}
