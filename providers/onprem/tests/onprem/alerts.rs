//! What the supervisor reads of alert receivers and their proxies.

use std::collections::BTreeMap;

use crate::parts::{name, onprem, site};
use serde_json::json;
use textnlp_provider::Component;
use textnlp_provider::Provider as _;
use textnlp_provider::component::{ComponentSpec, ExternalSecret, Monitoring, ReceiverAddress};

#[test]
fn secret_addresses_of_receivers_and_proxies_become_files_of_the_site() {
    let secret =
        |source: &str| ReceiverAddress::Secret(ExternalSecret { source: source.to_owned(), version: "1".to_owned() });
    let monitoring = Monitoring {
        receivers: BTreeMap::from([("https-proxy".to_owned(), secret("secret:env:ONCALL"))]),
        proxy: BTreeMap::from([
            ("HTTPS_PROXY".to_owned(), secret("secret:env:PROXY")),
            ("HTTP_PROXY".to_owned(), secret("secret:file:/run/proxy")),
            ("NO_PROXY".to_owned(), ReceiverAddress::Plain("localhost".to_owned())),
        ]),
        ..Monitoring::default()
    };
    let component = Component { name: name("monitoring"), existing: None, part: ComponentSpec::Monitoring(monitoring) };
    let wanted = onprem("/srv/state").lower(&component, &site()).unwrap();
    let order = wanted.iter().find(|one| one.id.as_str() == "here/monitoring").unwrap();
    let document = order.spec.get("document").unwrap();
    let folder = "/srv/state/sites/here/config";
    assert_eq!(document["receivers"], json!({ "https-proxy": { "file": format!("{folder}/alert-https-proxy") } }));
    assert_eq!(
        document["proxy"],
        json!({
            "HTTPS_PROXY": { "file": format!("{folder}/https-proxy") },
            "HTTP_PROXY": { "file": "/run/proxy" },
            "NO_PROXY": { "address": "localhost" },
        })
    );
    let needs: Vec<&str> = order.needs.iter().map(|need| need.on.as_str()).collect();
    assert_eq!(needs, ["here/monitoring/file-https-proxy", "here/monitoring/proxy-file-https-proxy", "here/network"]);
}
