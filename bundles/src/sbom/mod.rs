//! Software bills of materials in CycloneDX 1.6: the same bytes for the same content.
//!
//! Three kinds: [`program`] from a `Cargo.lock`, [`image`] from its layers, [`models`] from the catalogue. Licenses are
//! listed only where they are known.

mod document;
mod licenses;
mod lock;

use serde_json::{Value, json};
use textnlp_models::Digest;

use crate::scan::{CRATES, Image, Package, unescaped};
pub use document::Sbom;
pub use licenses::license_of_crate;
pub use lock::Lock;

use document::{Component, Parts};
use licenses::is_linked;

/// The subject and the time of a document.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `textnlp-deploy`.
    pub name: String,
    /// `1.0.0`.
    pub version: String,
    /// Seconds since 1970, from `SOURCE_DATE_EPOCH`. `None` for a document that depends on its components alone, so
    /// that it changes only with them.
    pub epoch: Option<u64>,
}

/// A file with its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// `application` or `file`, as in CycloneDX.
    pub kind: &'static str,
    /// Its path.
    pub path: String,
    /// Its name.
    pub name: String,
    /// Its version, where it has one.
    pub version: String,
    /// Its SHA-256.
    pub digest: Digest,
}

impl File {
    fn component(&self) -> Component {
        let mut component = Component::new(self.kind, &self.name, &self.version, format!("file:{}", self.path));
        component.sha256 = Some(self.digest.hex());
        component.properties.push(("textnlp:path", self.path.clone()));
        component
    }
}

/// The crates that are linked into a program.
#[derive(Clone, Copy, Debug)]
pub struct CrateGraph<'a> {
    /// The lock file that the program was built from.
    pub lock: &'a Lock,
    /// The workspace crate of the program; if it is missing, all crates of the file.
    pub root: &'a str,
    /// The conditions of the program: its platform `linux/amd64`, its features `clouds`, `candle`. For several programs, the union.
    pub conditions: &'a [&'a str],
}

impl CrateGraph<'_> {
    fn is_linked(&self, at: usize) -> bool {
        let package = &self.lock.packages[at];
        is_linked(&package.name, &package.version, self.conditions)
    }

    /// By place in the lock file.
    fn linked(&self) -> Vec<usize> {
        self.lock.reached_from(self.root).into_iter().filter(|at| self.is_linked(*at)).collect()
    }

    /// The linked crates of the default registry, to which advisories refer.
    pub fn packages(&self) -> Vec<Package> {
        let linked = self.linked().into_iter().map(|at| &self.lock.packages[at]);
        linked.filter(|p| p.is_from_registry()).map(|p| Package::of_crate(&p.name, &p.version)).collect()
    }
}

/// The files of a program, and its crates with their dependencies. `graph` is `None` where the crates of the program are
/// unknown: the document then lists only `files`.
pub fn program(subject: &Subject, files: &[File], graph: Option<&CrateGraph<'_>>) -> Sbom {
    let mut parts = Parts::default();
    for file in files {
        let component = file.component();
        parts.top.push(component.reference.clone());
        parts.components.push(component);
    }
    let scope = match graph {
        Some(graph) => {
            crates(&mut parts, graph);
            "every crate that is linked into the programs that were built from the lock file of the one that wrote this list"
        }
        None => "the program only: it is not the program that wrote this list, so its dependencies are unknown",
    };
    parts.properties.push(("textnlp:scope", scope.to_owned()));
    document::make(subject, "application", parts)
}

fn crates(parts: &mut Parts, graph: &CrateGraph<'_>) {
    let CrateGraph { lock, root, .. } = *graph;
    let wanted = graph.linked();
    let reference = |at: usize| {
        let package = &lock.packages[at];
        match (&package.source, package.is_from_registry()) {
            (_, true) => Package::of_crate(&package.name, &package.version).purl(),
            (Some(source), _) => format!("crate:{}@{}?{source}", package.name, package.version),
            (None, _) => format!("crate:{}@{}", package.name, package.version),
        }
    };
    for &at in &wanted {
        let package = &lock.packages[at];
        let own = package.source.is_none();
        let mut component = Component::new("library", &package.name, &package.version, reference(at));
        if package.is_from_registry() {
            component.purl = Some(reference(at));
            component.license = license_of_crate(&package.name, &package.version);
        }
        component.sha256 = package.checksum.clone().filter(|c| c.len() == 64);
        if own {
            component.license = Some(env!("CARGO_PKG_LICENSE").to_owned());
        }
        let source = if own { "workspace" } else { package.source.as_deref().unwrap_or_default() };
        component.properties.push(("textnlp:source", source.to_owned()));
        parts.components.push(component);
        let needs = package.dependencies.iter().filter_map(|line| lock.meant(line)).filter(|at| graph.is_linked(*at));
        let mut needs: Vec<String> = needs.map(reference).collect();
        needs.sort();
        parts.needs.push((reference(at), needs));
    }
    let root = wanted.iter().copied().find(|at| lock.packages[*at].name == root && lock.packages[*at].source.is_none());
    match root {
        Some(at) => parts.top.push(reference(at)),
        None => {
            parts.top.extend(wanted.iter().filter(|at| lock.packages[**at].source.is_none()).map(|at| reference(*at)));
        }
    }
}

/// The packages of an image, and the `files` that were added to it.
pub fn image(subject: &Subject, image: &Image, files: &[File]) -> Sbom {
    let mut parts = Parts::default();
    for file in files {
        let component = file.component();
        parts.top.push(component.reference.clone());
        parts.components.push(component);
    }
    let mut add = |package: &Package, place: Option<&str>| {
        let purl = package.purl();
        if let Some(before) = parts.components.iter_mut().find(|c: &&mut Component| c.reference == purl) {
            before.properties.extend(place.map(|p| ("textnlp:path", p.to_owned())));
            return;
        }
        let mut component = Component::new("library", &package.name, &package.version, purl.clone());
        component.purl = Some(purl.clone());
        if package.ecosystem == CRATES {
            component.license = license_of_crate(&package.name, &package.version);
        }
        if let Some((name, version)) = &package.origin {
            component.properties.push(("textnlp:origin", format!("{name} {version}")));
        }
        component.properties.extend(place.map(|p| ("textnlp:path", p.to_owned())));
        parts.top.push(purl);
        parts.components.push(component);
    };
    image.packages.iter().for_each(|p| add(p, None));
    for (path, crates) in &image.programs {
        crates.iter().for_each(|p| add(p, Some(path)));
    }
    parts.properties.push(("textnlp:image", image.name.clone()));
    parts.properties.push(("textnlp:digest", image.digest.clone()));
    parts.properties.extend(image.platform.clone().map(|p| ("textnlp:platform", p)));
    parts.properties.extend(image.distribution.clone().map(|d| ("textnlp:distribution", d)));
    parts.properties.extend(image.unread.iter().map(|(what, why, _)| ("textnlp:not-read", format!("{what}: {why}"))));
    document::make(subject, "container", parts)
}

/// One model of a bundle.
#[derive(Clone, Debug)]
pub struct Model {
    /// `textnlp-tiny`.
    pub name: String,
    /// Revision, where it has one.
    pub version: Option<String>,
    /// Of its list of files.
    pub digest: Digest,
    /// SPDX expression, where known.
    pub license: Option<String>,
    /// `bundled`, `hf:org/name@revision`.
    pub source: Option<String>,
    /// `gpt2`, `llama`.
    pub architecture: Option<String>,
}

/// Models, each with a minimal model card.
pub fn models(subject: &Subject, models: &[Model]) -> Sbom {
    let mut parts = Parts::default();
    for model in models {
        let version = model.version.clone().unwrap_or_else(|| model.digest.hex()[..12].to_owned());
        let reference = format!("model:{}@{}", model.name, model.digest);
        let mut component = Component::new("machine-learning-model", &model.name, &version, reference.clone());
        component.sha256 = Some(model.digest.hex());
        component.license = model.license.clone();
        component.properties.extend(model.source.clone().map(|s| ("textnlp:source", s)));
        let mut parameters = json!({"task": "text-generation"});
        if let Some(architecture) = &model.architecture {
            parameters["modelArchitecture"] = json!(architecture);
        }
        component.card = Some(json!({"modelParameters": parameters}));
        parts.top.push(reference);
        parts.components.push(component);
    }
    document::make(subject, "application", parts)
}

/// The packages that a CycloneDX document names by package URL: crates of the default registry, packages of distributions, of Python.
pub fn packages(bytes: &[u8]) -> Result<Vec<Package>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if value["bomFormat"] != "CycloneDX" {
        return Err("it is not a CycloneDX document".to_owned());
    }
    let components = value["components"].as_array().map(Vec::as_slice).unwrap_or_default();
    let purls = components.iter().filter_map(|c| c["purl"].as_str());
    Ok(purls.filter_map(package).collect())
}

fn package(purl: &str) -> Option<Package> {
    let rest = purl.strip_prefix("pkg:")?;
    let (rest, qualifiers) = rest.split('#').next()?.split_once('?').unwrap_or((rest, ""));
    let (path, version) = rest.rsplit_once('@')?;
    let mut parts = path.split('/');
    let kind = parts.next()?;
    let mut parts: Vec<String> = parts.map(unescaped).collect();
    let name = parts.pop()?;
    let qualifier =
        |key: &str| qualifiers.split('&').find_map(|q| q.strip_prefix(key)?.strip_prefix('=')).map(unescaped);
    // From another registry or a repository: advisories of the default registry do not cover it.
    if qualifier("repository_url").is_some() || qualifier("vcs_url").is_some() {
        return None;
    }
    let release = qualifier("distro").and_then(|d| d.split_once('-').map(|(_, release)| release.to_owned()));
    let with = |base: &str| release.as_ref().map_or_else(|| base.to_owned(), |release| format!("{base}:{release}"));
    let ecosystem = match (kind, parts.first().map(String::as_str)) {
        ("cargo", None) => CRATES.to_owned(),
        ("pypi", None) => "PyPI".to_owned(),
        ("deb", Some("debian")) => with("Debian"),
        ("deb", Some("ubuntu")) => with("Ubuntu"),
        ("apk", Some("alpine")) => with("Alpine"),
        ("apk", Some("wolfi")) => "Wolfi".to_owned(),
        _ => return None,
    };
    Some(Package { ecosystem, name, version: unescaped(version), origin: None, architecture: qualifier("arch") })
}

#[cfg(test)]
mod tests;
