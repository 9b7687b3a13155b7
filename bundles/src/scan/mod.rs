//! Looks for what is known to be wrong: crates and packages with advisories, settings, secrets left in files, the way images are built.
//!
//! A [`Scan`] needs no network. It reads a folder or a bundle through [`Contents`], holds what it finds against a [`Database`], and says in its
//! [`Report`] also what it could *not* look at: a scan that looks clean because it saw nothing is worse than none. [`gate`] decides.

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

use std::borrow::Cow;

use jiff::Timestamp;

use self::run::Run;
use crate::sbom::Lock;
pub use advisory::Database;
pub use allow::Allow;
pub use configuration::{Check, checks};
pub use contents::{Contents, Entry, Folder, Unsealed};
pub use error::Error;
pub use finding::{
    Allowed, DatabaseFacts, FORMAT, Finding, Gate, Kind, Listed, NotLookedAt, Report, Severity, Summary,
    UnknownSeverity, gate,
};
pub use image::Image;
pub(crate) use package::unescaped;
pub use package::{CRATES, Package};

/// Where a bundle carries its advisories.
pub const CARRIED: &str = "sbom/advisories.json";

/// How to scan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The time of the scan: what ages are counted from.
    pub now: Timestamp,
    /// Advisories older than this are a finding.
    pub max_age_days: i64,
    /// What is borne. Comes from whoever scans, never from what is scanned.
    pub allow: Vec<Allow>,
    /// Whether a gate stays shut while packages of an image's distribution are not matched.
    pub require_os_advisories: bool,
    /// Bounds of reading images.
    pub limits: image::Limits,
}

impl Settings {
    /// The usual ones.
    pub fn at(now: Timestamp) -> Settings {
        let limits = image::Limits::default();
        Settings { now, max_age_days: 30, allow: Vec::new(), require_os_advisories: false, limits }
    }
}

/// A way of scanning: settings and advisories.
#[derive(Clone, Debug)]
pub struct Scan {
    settings: Settings,
    database: Option<Database>,
}

impl Scan {
    /// Without advisories: those that a bundle carries are used, where there are any.
    pub fn new(settings: Settings) -> Scan {
        Scan { settings, database: None }
    }

    /// With these. Called more than once, with all of them. What a bundle carries is then left aside: it may be older, and it is the bundle's own word.
    #[must_use]
    pub fn with(mut self, database: Database) -> Scan {
        self.database = Some(match self.database.take() {
            Some(before) => before.and(database),
            None => database,
        });
        self
    }

    /// A bundle's content, or a folder with the same layout: `bin/`, `configs/`, `images/`, `sbom/`, and whatever else lies there.
    pub fn of_folder(&self, target: &str, contents: &dyn Contents) -> Result<Report, Error> {
        let database = self.database_or_carried(contents)?;
        let mut run = Run::new(&self.settings, database.as_deref(), target);
        let entries = contents.entries();
        for (path, why) in contents.unreadable() {
            run.report.not_looked_at(path, why, false);
        }
        run.programs(contents, &entries);
        run.images(contents, &entries);
        run.configurations(contents, &entries);
        run.files(contents, &entries);
        Ok(run.finish())
    }

    /// Configurations alone, as (name, text): an environment before anything is made of it.
    pub fn of_environment(&self, target: &str, texts: &[(String, String)]) -> Report {
        let mut run = Run::new(&self.settings, None, target);
        run.texts(texts);
        run.finish()
    }

    /// The configurations of a folder alone.
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

    /// The crates of a `Cargo.lock`.
    pub fn of_lock(&self, target: &str, text: &str) -> Result<Report, Error> {
        let lock = Lock::parse(text).map_err(|why| Error::Lock { path: target.to_owned(), why })?;
        let mut run = Run::new(&self.settings, self.database.as_ref(), target);
        run.packages(target, &lock.registry_packages());
        Ok(run.finish())
    }

    fn database_or_carried(&self, contents: &dyn Contents) -> Result<Option<Cow<'_, Database>>, Error> {
        if self.database.is_some() || !contents.entries().iter().any(|e| e.path == CARRIED) {
            return Ok(self.database.as_ref().map(Cow::Borrowed));
        }
        let read = contents::whole(contents, CARRIED, advisory::MOST_BYTES);
        let bytes = read.map_err(|source| Error::Read { path: CARRIED.to_owned(), source })?;
        let why = format!("longer than {} bytes", advisory::MOST_BYTES);
        let bytes = bytes.ok_or(Error::Advisories { path: CARRIED.to_owned(), why })?;
        Database::from_bytes(&bytes, CARRIED).map(|database| Some(Cow::Owned(database)))
    }
}

#[cfg(test)]
mod tests;
