//! Scans for known problems: vulnerable crates and packages, insecure settings, secrets in files, insecure builds of
//! images.
//!
//! A [`Scan`] needs no network. It reads a folder or a bundle through [`Contents`] and matches it against a
//! [`Database`]. Its [`Report`] also lists what could *not* be scanned: an incomplete scan must not look clean.
//! [`gate`] decides.

pub mod advisory;
pub mod allow;
mod configuration;
mod contents;
mod error;
mod finding;
pub mod image;
mod package;
mod run;
mod secrets;
#[cfg(test)]
pub(crate) mod tool;
mod version;
mod wheels;

use std::borrow::Cow;

use jiff::Timestamp;

use self::run::Run;
use crate::sbom::Lock;
pub use advisory::Database;
pub use allow::Allow;
pub use configuration::{Check, checks};
pub use contents::{BundleInputs, Contents, Entry, Folder};
pub use error::Error;
pub use finding::{
    Allowed, DatabaseFacts, FORMAT, Finding, Gate, Kind, NotScanned, Report, ScannedItem, Severity, Summary,
    UnknownSeverity, gate,
};
pub use image::Image;
pub(crate) use package::unescaped;
pub use package::{CRATES, Package};

/// The path of the advisories in a bundle.
pub const CARRIED: &str = "sbom/advisories.json";

/// The folder of a bundle with packages of operating systems and languages.
const PACKAGES: &str = "packages/";

/// The default maximum age of advisories, the same as that of gates.
pub const MAX_AGE_DAYS: i64 = 30;

/// Options of a scan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The time of the scan: the reference of all ages.
    pub now: Timestamp,
    /// Advisories older than this are a finding.
    pub max_age_days: i64,
    /// Accepted findings. They come from the operator, never from the scanned content.
    pub allow: Vec<Allow>,
    /// Whether unmatched packages of an image's distribution close a gate.
    pub require_os_advisories: bool,
    /// Whether the scan of a folder matches the Python packages in `packages/`, of which no program of the service
    /// uses any.
    pub has_packages: bool,
    /// Limits of reading images.
    pub limits: image::Limits,
}

impl Settings {
    /// The defaults.
    pub fn at(now: Timestamp) -> Settings {
        let limits = image::Limits::default();
        Settings {
            now,
            max_age_days: MAX_AGE_DAYS,
            allow: Vec::new(),
            require_os_advisories: false,
            has_packages: true,
            limits,
        }
    }
}

/// A scan: options and advisories.
#[derive(Clone, Debug)]
pub struct Scan {
    settings: Settings,
    database: Option<Database>,
}

impl Scan {
    /// Without a database of its own: uses the one of the scanned bundle, if any.
    pub fn new(settings: Settings) -> Scan {
        Scan { settings, database: None }
    }

    /// Adds a database; several calls combine them. The one in the scanned bundle is then ignored: it may be older, and
    /// the bundle must not vouch for itself.
    #[must_use]
    pub fn with(mut self, database: Database) -> Scan {
        self.database = Some(match self.database.take() {
            Some(before) => before.and(database),
            None => database,
        });
        self
    }

    /// A bundle's content, or a folder with the same layout: `bin/`, `configs/`, `images/`, `packages/`, `sbom/` and
    /// other files.
    pub fn of_folder(&self, target: &str, contents: &dyn Contents) -> Result<Report, Error> {
        let database = self.database_or_carried(contents)?;
        let mut run = Run::new(&self.settings, database.as_deref(), target);
        let entries = contents.entries();
        for (path, why) in contents.unreadable() {
            run.report.not_looked_at(path, why, false);
        }
        run.programs(contents, &entries);
        run.images(contents, &entries);
        if self.settings.has_packages {
            run.python_packages(&entries);
        }
        run.configurations(contents, &entries);
        run.files(contents, &entries);
        Ok(run.finish())
    }

    /// Only configurations, as (name, text), such as an environment before it is applied.
    pub fn of_environment(&self, target: &str, texts: &[(String, String)]) -> Report {
        let mut run = Run::new(&self.settings, None, target);
        run.texts(texts);
        run.finish()
    }

    /// Only the configurations of a folder.
    pub fn of_configs(&self, target: &str, contents: &dyn Contents) -> Report {
        let mut run = Run::new(&self.settings, None, target);
        run.configurations(contents, &contents.entries());
        run.finish()
    }

    /// Each image of the OCI layout in `folder`, as a report of its own, by the image's name.
    pub fn of_images(&self, contents: &dyn Contents, folder: &str) -> Result<Vec<(String, Report)>, Error> {
        let database = self.database_or_carried(contents)?;
        let (images, unread) = image::images(contents, folder, self.settings.limits);
        let mut reports = Vec::new();
        for image in images {
            let mut run = Run::new(&self.settings, database.as_deref(), &image.name);
            run.image(&image);
            reports.push((image.name, run.finish()));
        }
        for (what, why) in unread {
            let mut run = Run::new(&self.settings, database.as_deref(), &what);
            run.report.not_looked_at(&what, why, true);
            reports.push((what, run.finish()));
        }
        Ok(reports)
    }

    /// Only the Python packages in `packages/`; `None` if that folder has no files.
    pub fn of_python_packages(&self, target: &str, contents: &dyn Contents) -> Result<Option<Report>, Error> {
        let entries = contents.entries();
        if !entries.iter().any(|entry| entry.path.starts_with(PACKAGES)) {
            return Ok(None);
        }
        let database = self.database_or_carried(contents)?;
        let mut run = Run::new(&self.settings, database.as_deref(), target);
        run.python_packages(&entries);
        Ok(Some(run.finish()))
    }

    /// Packages, such as those of a [`CrateGraph`](crate::sbom::CrateGraph).
    pub fn of_packages(&self, target: &str, packages: &[Package]) -> Report {
        let mut run = Run::new(&self.settings, self.database.as_ref(), target);
        run.packages(target, packages);
        run.finish()
    }

    /// The crates of a `Cargo.lock`.
    pub fn of_lock(&self, target: &str, text: &str) -> Result<Report, Error> {
        let lock = Lock::parse(text).map_err(|why| Error::Lock { path: target.to_owned(), why })?;
        Ok(self.of_packages(target, &lock.registry_packages()))
    }

    fn database_or_carried(&self, contents: &dyn Contents) -> Result<Option<Cow<'_, Database>>, Error> {
        match &self.database {
            Some(database) => Ok(Some(Cow::Borrowed(database))),
            None => Ok(Database::carried(contents)?.map(Cow::Owned)),
        }
    }
}

#[cfg(test)]
mod tests;
