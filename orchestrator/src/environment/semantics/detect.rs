//! `provider: auto`: selects the provider from the surroundings.
//!
//! The rules for one site, in order:
//!
//! 1. Evidence counts for included providers that support the site's `runtime`, if the file sets one.
//! 2. One such provider is selected. Two or more are ambiguous and rejected.
//! 3. Without any, the fallback is selected, if it supports the site's `runtime`.
//!
//! Evidence for a provider that this program does not include decides nothing and is reported.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::problem::{Origin, Problem, Severity};
use super::super::tree::{Entry, Node, NodeKind};
use super::{Catalogue, Offer};

/// The evidence that the caller collected. Nothing here reads the system.
#[derive(Debug, Clone, Default)]
pub struct DetectionInputs {
    /// Evidence of providers, in the order it is reported.
    pub evidence: Vec<ProviderEvidence>,
    /// The provider that needs no evidence: the local machine.
    pub fallback: String,
}

/// Evidence of a provider.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ProviderEvidence {
    /// The provider.
    pub provider: String,
    /// The observation; names of variables and files, never their values.
    pub seen: String,
}

/// The selected provider and the reason.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Detected {
    /// The provider.
    pub provider: String,
    /// The reason.
    pub because: String,
}

/// Why no provider was selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetectionError {
    /// The cause.
    pub cause: String,
    /// The candidates; empty if none supports the site.
    pub candidates: Vec<String>,
}

impl Catalogue {
    /// Selects the provider of a site with this `runtime`; `None` accepts any runtime.
    pub fn detect(&self, runtime: Option<&str>) -> Result<Detected, DetectionError> {
        let none = |cause: String| DetectionError { cause, candidates: Vec::new() };
        let Some(surroundings) = &self.surroundings else {
            return Err(none("provider detection did not run".to_owned()));
        };
        let runs = |offer: &Offer, runtime: &str| offer.capabilities.names().contains(&runtime);
        let fits = |offer: &Offer| offer.missing.is_none() && runtime.is_none_or(|runtime| runs(offer, runtime));
        let mut candidates: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut aside = Vec::new();
        for ProviderEvidence { provider, seen } in &surroundings.evidence {
            match self.providers.get(provider) {
                Some(offer) if fits(offer) => candidates.entry(provider).or_default().push(seen),
                Some(offer) if offer.missing.is_none() => {
                    aside.push(format!("{seen}, but `{provider}` does not run this site"))
                }
                _ => aside.push(format!("{seen}, but `{provider}` is not part of this program")),
            }
        }
        let aside: String = aside.iter().map(|one| format!("; {one}")).collect();
        let mut found = candidates.iter();
        match (found.next(), found.next()) {
            (Some((provider, seen)), None) => {
                Ok(Detected { provider: (*provider).to_owned(), because: format!("{}{aside}", seen.join(", ")) })
            }
            (Some(_), Some(_)) => {
                let each: Vec<_> =
                    candidates.iter().map(|(name, seen)| format!("`{name}` ({})", seen.join(", "))).collect();
                let cause = format!("more than one provider was detected: {}", each.join(" and "));
                Err(DetectionError { cause, candidates: candidates.keys().map(|name| (*name).to_owned()).collect() })
            }
            (None, _) => {
                let name = &surroundings.fallback;
                match self.providers.get(name) {
                    Some(offer) if fits(offer) => Ok(Detected {
                        provider: name.clone(),
                        because: format!("no other provider was detected{aside}"),
                    }),
                    _ => {
                        let how = runtime.map(|runtime| format!(" that runs `{runtime}`")).unwrap_or_default();
                        Err(none(format!("no provider{how} was detected{aside}")))
                    }
                }
            }
        }
    }
}

/// Replaces `auto` by the detected provider, and sets its runtime if the file sets none.
pub(crate) fn detect_providers(tree: &mut Node, catalogue: &Catalogue, problems: &mut Vec<Problem>) {
    let NodeKind::Map(entries) = &mut tree.kind else { return };
    let Some(NodeKind::List(sites)) = entries.iter_mut().find(|e| e.key == "sites").map(|e| &mut e.node.kind) else {
        return;
    };
    for (i, site) in sites.iter_mut().enumerate() {
        let runtime = site.get("runtime").and_then(Node::text).map(str::to_owned);
        let NodeKind::Map(fields) = &mut site.kind else { continue };
        let Some(provider) = fields.iter_mut().find(|e| e.key == "provider").map(|e| &mut e.node) else { continue };
        if provider.text() != Some("auto") {
            continue;
        }
        let path = format!("sites[{i}].provider");
        let at = provider.origin.clone();
        match catalogue.detect(runtime.as_deref()) {
            Ok(Detected { provider: name, because }) => {
                let cause = format!("`{name}` is detected: {because}");
                let fix = format!("to override detection, write `provider: {name}` or another provider");
                problems.push(Problem::error(at, path, cause, fix).at(Severity::Note));
                let origin = Origin::Detected { because };
                let only = catalogue.providers.get(&name).and_then(|offer| offer.capabilities.runtimes.first());
                *provider = Node::scalar(Value::String(name), origin.clone());
                if let (None, Some(only)) = (runtime, only) {
                    let node = Node::scalar(Value::String(only.runtime.as_str().to_owned()), origin.clone());
                    fields.push(Entry { key: "runtime".to_owned(), at: origin, node });
                }
            }
            Err(DetectionError { cause, candidates }) => {
                let fix = match candidates.as_slice() {
                    [] => "write one, such as `provider: onprem`".to_owned(),
                    several => format!("write `provider: {}`", several.join("` or `provider: ")),
                };
                problems.push(Problem::error(at, path, cause, fix));
            }
        }
    }
}
