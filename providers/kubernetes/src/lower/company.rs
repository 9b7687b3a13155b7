//! Settings of a company network: a private certificate authority besides the public ones, and a proxy for model
//! downloads and copies of dumps.

use serde_json::{Value, json};
use textnlp_provider::ResourceId;
use textnlp_provider::component::Egress;

use super::Lowering;

/// The config map with the certificate authority.
const MAP: &str = "textnlp-private-ca";
/// Its file in that map.
const FILE: &str = "ca.crt";
/// Its mount path in pods.
const FOLDER: &str = "/etc/textnlp-private-ca";
/// The variable with the path of the certificate authority.
const VARIABLE: &str = "TEXTNLP_CA_FILE";

impl Lowering<'_> {
    /// The config map with the certificate authority, if one is configured.
    pub(super) fn private_ca(&mut self, egress: &Egress) -> Option<ResourceId> {
        match egress.private_ca.as_ref()? {
            Ok(pem) => {
                self.map_of("private-ca", MAP, [(FILE.to_owned(), pem.clone())]);
                self.id(self.component.name.as_str(), "private-ca")
            }
            Err(why) => {
                self.problem("network.private_ca", why.as_str(), "give a file with certificates in PEM format");
                None
            }
        }
    }
}

/// The mount path of the certificate authority and its volume; null if none is configured.
pub(super) fn private_authority(egress: &Egress) -> Value {
    match egress.private_ca {
        None => Value::Null,
        Some(_) => json!({
            "folder": FOLDER,
            "volume": { "name": "private-ca", "configMap": { "name": MAP } },
        }),
    }
}

/// The path of the certificate authority in pods.
pub(super) fn private_authority_file() -> String {
    format!("{FOLDER}/{FILE}")
}

/// The environment variables for connections to stores.
pub(super) fn download_env(egress: &Egress) -> impl Iterator<Item = Value> {
    let file = egress.private_ca.as_ref().map(|_| (VARIABLE.to_owned(), private_authority_file()));
    let variables = egress.proxy.clone().into_iter().chain(file);
    variables.map(|(name, value)| json!({ "name": name, "value": value }))
}
