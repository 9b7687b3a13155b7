//! What of a site belongs into a copy that brings it back: what cannot be made again. Everything else follows from the environment.

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use textnlp_provider::{Error, Lineage, Result, SiteName, Sort};

use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::spec::{AuthoritySpec, ControlSpec, DatabaseSpec, ModelSpec, PostgresSpec, ProcessSpec, SchemaSpec};
use crate::table::Noun;

/// A configuration names a few sites.
const HELD_MAX: u64 = 64 << 10;

/// What of a site belongs into a copy. Paths are from the state folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SiteCopy {
    /// Files, as they are.
    pub files: Vec<String>,
    /// The database, which only the server program can copy while it is used; with a lost disk it is not there.
    pub database: Option<String>,
    /// What the site knew of the configuration of several, if it is one of them.
    pub control: Option<Held>,
    /// Where a dump of its database belongs, where that is a server, which only the server program can copy.
    pub dump: Option<String>,
    /// Whether that server is somebody else's, which other sites may store in too.
    pub outside: bool,
    /// The configuration of its PostgreSQL's keeper, where its log is archived: whose files are a base for that log.
    pub base: Option<Utf8PathBuf>,
    /// How it is served: the program and the configuration of the first replica, as absolute paths.
    pub served: Option<(Utf8PathBuf, Utf8PathBuf)>,
    /// The models that are there.
    pub models: Vec<ModelCopy>,
}

/// Who was primary, as a site knew it last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Held {
    /// Which configuration: of two sites the one with the higher number knows better.
    pub epoch: u64,
    /// Who.
    pub primary: String,
}

/// A model of a site.
#[derive(Debug, PartialEq, Eq)]
pub struct ModelCopy {
    /// The name that requests use.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// Its digest, once it was delivered.
    pub digest: Option<String>,
    /// Its folder, absolute.
    pub folder: Utf8PathBuf,
}

impl SiteCopy {
    /// Looks at a site. A site of which nothing is left has nothing to copy.
    pub fn of(state: &Utf8Path, site: &SiteName) -> Result<Self> {
        let folder = SiteFolder::of(state, site);
        let fails = |error| Error::io("look at", folder.root().as_str(), error);
        let mut copy = Self::default();
        let mut first: Option<ProcessSpec> = None;
        let (mut has_primary, mut has_copy) = (false, false);
        for marker in Marker::all(&folder).map_err(fails)? {
            let unreadable = |error| Error::new(Sort::Invalid, "read", marker.resource.to_string()).because(error);
            let Some(noun) = Noun::of(&marker.kind) else { continue };
            match noun {
                Noun::Secret => {}
                Noun::Authority => {
                    let spec: AuthoritySpec = marker.spec.typed().map_err(unreadable)?;
                    copy.file(state, &folder.inside(&spec.certificate_file)?);
                }
                Noun::Database => {
                    let spec: DatabaseSpec = marker.spec.typed().map_err(unreadable)?;
                    copy.database = Some(relative(state, &folder.inside(&spec.path)?));
                }
                // Control data itself is not copied: every site's database shows it, and a restored site begins a log of its own.
                Noun::Control => {
                    let spec: ControlSpec = marker.spec.typed().map_err(unreadable)?;
                    let path = folder.inside(&spec.path)?.join("configuration.json");
                    let text = files::read_bounded(&path, HELD_MAX).ok();
                    copy.control = text.and_then(|text| serde_json::from_slice(&text).ok());
                    continue;
                }
                // Also while it does not run: a copy without it would pass for one that brings everything back.
                Noun::Postgres => {
                    let spec: PostgresSpec = marker.spec.typed().map_err(unreadable)?;
                    (has_primary, has_copy) = (has_primary || !spec.follows, has_copy || spec.follows);
                    if !spec.follows {
                        copy.dump = Some(relative(state, &folder.join(crate::lower::DUMP)));
                    }
                    continue;
                }
                Noun::Schema => {
                    let spec: SchemaSpec = marker.spec.typed().map_err(unreadable)?;
                    if spec.served {
                        copy.dump = Some(relative(state, &folder.join(crate::lower::DUMP)));
                    }
                    continue;
                }
                Noun::Model => {
                    let spec: ModelSpec = marker.spec.typed().map_err(unreadable)?;
                    let digest = marker.fact("digest").map(str::to_owned);
                    let folder = folder.inside(&spec.path)?;
                    copy.models.push(ModelCopy { name: spec.name, source: spec.source, digest, folder });
                    continue;
                }
                Noun::Process => {
                    let spec: ProcessSpec = marker.spec.typed().map_err(unreadable)?;
                    let is_earlier = first.as_ref().is_none_or(|first| spec.unit < first.unit);
                    if spec.arguments == ["serve"] && is_earlier {
                        first = Some(spec);
                    } else if spec.arguments == ["serve", "--role", "postgres"] {
                        let config = folder.join(&spec.config);
                        copy.base = copy.base.or_else(|| archives(&config).then_some(config));
                    }
                    continue;
                }
                _ => continue,
            }
            copy.file(state, &folder.marker(&marker.resource));
        }
        if has_copy && !has_primary {
            // It is the database of another site, which is copied there.
            copy.dump = None;
        }
        copy.outside = copy.dump.is_some() && !has_primary;
        copy.served = first.map(|spec| (folder.join(&spec.program), folder.join(&spec.config)));
        Ok(copy)
    }

    fn file(&mut self, state: &Utf8Path, path: &Utf8Path) {
        // What is gone is drift, which `up` mends; a copy of the rest is better than none.
        if path.is_file() {
            self.files.push(relative(state, path));
        }
    }
}

/// Puts a copied database where a site of another deployment finds it as its own: the file, and the marker that says whose it is. The
/// site itself is made by the next plan, which finds the database and adopts it.
pub fn seed(from: &Utf8Path, to: &Utf8Path, site: &SiteName, lineage: Lineage, database: &Utf8Path) -> Result<()> {
    let (from, to) = (SiteFolder::of(from, site), SiteFolder::of(to, site));
    let io = |what: &'static str, path: &Utf8Path| {
        let path = path.to_string();
        move |error| Error::io(what, path.clone(), error)
    };
    let markers = Marker::all(&from).map_err(io("look at", from.root()))?;
    let Some(marker) = markers.into_iter().find(|marker| Noun::of(&marker.kind) == Some(Noun::Database)) else {
        return Err(Error::new(Sort::NotFound, "look at", from.root().as_str()).because("no database is marked there"));
    };
    let unreadable = |error| Error::new(Sort::Invalid, "read", marker.resource.to_string()).because(error);
    let spec: DatabaseSpec = marker.spec.typed().map_err(unreadable)?;
    let path = to.inside(&spec.path)?;
    for folder in [path.parent(), Some(to.join("objects").as_path())].into_iter().flatten() {
        files::make_folder(folder).map_err(io("make", folder))?;
    }
    std::fs::copy(database, &path).map_err(io("write", &path))?;
    files::flush_folder(path.parent().unwrap_or(to.root())).map_err(io("flush", &path))?;
    Marker { lineage, ..marker }.write(&to).map_err(io("mark", &path))
}

/// Whether a keeper hands its server's log over.
fn archives(config: &Utf8Path) -> bool {
    let text = files::read_bounded(config, files::TEXT_MAX).unwrap_or_default();
    let config = serde_yaml::from_slice::<serde_json::Value>(&text);
    config.is_ok_and(|config| config["postgres"]["archive"].is_object())
}

fn relative(state: &Utf8Path, path: &Utf8Path) -> String {
    path.strip_prefix(state).unwrap_or(path).to_string()
}
