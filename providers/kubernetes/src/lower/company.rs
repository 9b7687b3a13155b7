//! What a company's own network asks of pods: an authority that is trusted besides the public ones, and a proxy by which models come.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::ResourceId;

use super::Lowering;

/// The map with the authority, as `ca.crt`.
const MAP: &str = "textnlp-private-ca";
/// Where pods have it.
const FOLDER: &str = "/etc/textnlp-private-ca";
/// By which programs of ours are told where it is, when they fetch models.
const VARIABLE: &str = "TEXTNLP_CA_FILE";

/// How pods reach what lies outside of their cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompanyNetwork {
    /// The authorities that are trusted besides the public ones, as PEM, or why they cannot be had.
    pub authority: Option<Result<String, String>>,
    /// The variables that name a proxy for models: `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`. They stand in the pods' template.
    pub proxy: BTreeMap<String, String>,
}

impl Lowering<'_> {
    /// The map with the authority, where one is named.
    pub(super) fn private_ca(&mut self) -> Option<ResourceId> {
        match self.place.company.authority.clone()? {
            Ok(pem) => {
                self.map_of("private-ca", MAP, [("ca.crt".to_owned(), pem)]);
                self.id(self.component.name.as_str(), "private-ca")
            }
            Err(why) => {
                self.problem("network.private_ca", why, "name a file with certificates in PEM form");
                None
            }
        }
    }

    /// The folder with the authority and the volume that it is in; null where none is named.
    pub(super) fn private_authority(&self) -> Value {
        match self.place.company.authority {
            None => Value::Null,
            Some(_) => json!({
                "folder": FOLDER,
                "volume": { "name": "private-ca", "configMap": { "name": MAP } },
            }),
        }
    }

    /// What whoever fetches models is told in variables.
    pub(super) fn fetching(&self) -> impl Iterator<Item = Value> {
        let file = self.place.company.authority.as_ref().map(|_| (VARIABLE.to_owned(), format!("{FOLDER}/ca.crt")));
        let told = self.place.company.proxy.clone().into_iter().chain(file);
        told.map(|(name, value)| json!({ "name": name, "value": value }))
    }
}
