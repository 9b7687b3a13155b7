//! What a backup of a site contains: the data that cannot be recreated from the environment.

use camino::Utf8Path;
use textnlp_keys::{AuthoritySpec, KeyKind, Marker, SiteFolder, acme, files};
use textnlp_provider::operations::{ModelCopy, SiteCopy};
use textnlp_provider::{Error, ErrorKind, Lineage, Result, SiteName};

use crate::spec::{ControlSpec, DatabaseSpec, ModelSpec, PostgresSpec, ProcessSpec, SchemaSpec};
use crate::table::ResourceKind;

/// Arguments of the PostgreSQL supervisor in journals of older releases.
const OLDER_POSTGRES: [&str; 3] = ["serve", "--role", "postgres"];

/// A configuration names a few sites.
const MAX_CONFIGURATION_BYTES: u64 = 64 << 10;

/// Reads what a backup of a site contains. A site without any files has nothing to back up.
pub fn site_copy(state: &Utf8Path, site: &SiteName) -> Result<SiteCopy> {
    let folder = SiteFolder::of(state, site);
    let fails = |error| Error::io("check", folder.root().as_str(), error);
    let mut copy = SiteCopy::default();
    let mut first: Option<ProcessSpec> = None;
    let (mut has_primary, mut has_copy) = (false, false);
    for marker in Marker::all(&folder).map_err(fails)? {
        let unreadable = |error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error);
        match KeyKind::of(&marker.kind) {
            Some(KeyKind::Secret) => file(&mut copy, state, &folder.marker(&marker.resource)),
            Some(KeyKind::Authority) => {
                let spec: AuthoritySpec = marker.spec.typed().map_err(unreadable)?;
                file(&mut copy, state, &folder.inside(&spec.certificate_file)?);
                file(&mut copy, state, &folder.marker(&marker.resource));
            }
            Some(KeyKind::Directory | KeyKind::Certificate) | None => {}
        }
        let Some(noun) = ResourceKind::of(&marker.kind) else { continue };
        match noun {
            ResourceKind::Database => {
                let spec: DatabaseSpec = marker.spec.typed().map_err(unreadable)?;
                copy.database = Some(relative(state, &folder.inside(&spec.path)?));
                file(&mut copy, state, &folder.marker(&marker.resource));
            }
            // Control data is not backed up: every site's database holds it, and a restored site starts a new log.
            ResourceKind::Control => {
                let spec: ControlSpec = marker.spec.typed().map_err(unreadable)?;
                let path = folder.inside(&spec.path)?.join("configuration.json");
                let text = files::read_bounded(&path, MAX_CONFIGURATION_BYTES).ok();
                copy.control = text.and_then(|text| serde_json::from_slice(&text).ok());
            }
            // Included while it is stopped too: a backup without it would look complete.
            ResourceKind::Postgres => {
                let spec: PostgresSpec = marker.spec.typed().map_err(unreadable)?;
                (has_primary, has_copy) = (has_primary || !spec.follows, has_copy || spec.follows);
                if !spec.follows {
                    copy.dump = Some(relative(state, &folder.join(crate::names::DUMP)));
                }
            }
            ResourceKind::PublicCertificate => {
                acme::backed_up(&folder).iter().for_each(|path| file(&mut copy, state, path));
                file(&mut copy, state, &folder.marker(&marker.resource));
            }
            ResourceKind::Schema => {
                let spec: SchemaSpec = marker.spec.typed().map_err(unreadable)?;
                if spec.served {
                    copy.dump = Some(relative(state, &folder.join(crate::names::DUMP)));
                }
            }
            ResourceKind::Model => {
                let spec: ModelSpec = marker.spec.typed().map_err(unreadable)?;
                let digest = marker.fact("digest").map(str::to_owned);
                let folder = folder.inside(&spec.path)?;
                copy.models.push(ModelCopy { name: spec.name, source: spec.source, digest, folder });
            }
            ResourceKind::Process => {
                let spec: ProcessSpec = marker.spec.typed().map_err(unreadable)?;
                let is_earlier = first.as_ref().is_none_or(|first| spec.unit < first.unit);
                if spec.arguments == ["serve"] && is_earlier {
                    first = Some(spec);
                } else if spec.arguments == ["postgres"] || spec.arguments == OLDER_POSTGRES {
                    let config = folder.join(&spec.config);
                    copy.base = copy.base.or_else(|| archives(&config).then_some(config));
                }
            }
            _ => {}
        }
    }
    if has_copy && !has_primary {
        // It is the database of another site, whose backup contains it.
        copy.dump = None;
    }
    copy.outside = copy.dump.is_some() && !has_primary;
    copy.served = first.map(|spec| (folder.join(&spec.program), folder.join(&spec.config)));
    Ok(copy)
}

fn file(copy: &mut SiteCopy, state: &Utf8Path, path: &Utf8Path) {
    // A missing file is drift, which `up` repairs. A backup of the rest is better than none.
    if path.is_file() {
        copy.files.push(relative(state, path));
    }
}

/// Restores a database for a site of another deployment: the file, and the marker with its lineage. The next plan finds
/// the database and adopts it.
pub fn seed(from: &Utf8Path, to: &Utf8Path, site: &SiteName, lineage: Lineage, database: &Utf8Path) -> Result<()> {
    let (from, to) = (SiteFolder::of(from, site), SiteFolder::of(to, site));
    let io = |what: &'static str, path: &Utf8Path| {
        let path = path.to_string();
        move |error| Error::io(what, path.clone(), error)
    };
    let markers = Marker::all(&from).map_err(io("check", from.root()))?;
    let Some(marker) =
        markers.into_iter().find(|marker| ResourceKind::of(&marker.kind) == Some(ResourceKind::Database))
    else {
        return Err(
            Error::new(ErrorKind::NotFound, "check", from.root().as_str()).because("no database is marked there")
        );
    };
    let unreadable = |error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error);
    let spec: DatabaseSpec = marker.spec.typed().map_err(unreadable)?;
    let path = to.inside(&spec.path)?;
    for folder in [path.parent(), Some(to.join("objects").as_path())].into_iter().flatten() {
        files::make_folder(folder).map_err(io("make", folder))?;
    }
    std::fs::copy(database, &path).map_err(io("write", &path))?;
    files::flush_folder(path.parent().unwrap_or(to.root())).map_err(io("flush", &path))?;
    Marker { lineage, ..marker }.write(&to).map_err(io("mark", &path))
}

/// Whether WAL archiving is on in a PostgreSQL configuration.
fn archives(config: &Utf8Path) -> bool {
    let text = files::read_bounded(config, files::TEXT_MAX).unwrap_or_default();
    let config = serde_yaml::from_slice::<serde_json::Value>(&text);
    config.is_ok_and(|config| config["postgres"]["archive"].is_object())
}

fn relative(state: &Utf8Path, path: &Utf8Path) -> String {
    path.strip_prefix(state).unwrap_or(path).to_string()
}
