//! A running scan: what each kind of content adds to the report.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::advisory::Database;
use super::configuration::{self, Document};
use super::contents::{Contents, Entry, whole};
use super::finding::{Finding, Kind, Report, Severity};
use super::image::{self, Image};
use super::package::{CRATES, Package};
use super::secrets::{self, FileContent, ScanDepth};
use super::{CARRIED, PACKAGES, Settings, allow, wheels};
use crate::sbom::{self, Lock};

/// No list of software is longer.
const LONGEST_LIST: u64 = 64 << 20;
/// The most files that one finding lists.
const NAMED: usize = 12;

pub(super) struct Run<'a> {
    settings: &'a Settings,
    database: Option<&'a Database>,
    pub(super) report: Report,
    texts: u64,
}

impl<'a> Run<'a> {
    pub(super) fn new(settings: &'a Settings, database: Option<&'a Database>, target: &str) -> Run<'a> {
        let mut report = Report::new(target, settings.now);
        if let Some(database) = database {
            report.databases = database.facts(settings.now);
            for (what, why) in database.unread() {
                report.not_looked_at(format!("advisory {what}"), why, true);
            }
        }
        Run { settings, database, report, texts: 0 }
    }

    pub(super) fn finish(mut self) -> Report {
        let most = self.settings.max_age_days;
        let old: Vec<Finding> = self
            .report
            .databases
            .iter()
            .filter(|d| d.age_days > most)
            .map(|d| Finding {
                id: "advisories-old".to_owned(),
                kind: Kind::Scan,
                severity: Severity::Medium,
                title: format!("The advisories of {} are {} days old", d.name, d.age_days),
                place: d.name.clone(),
                package: None,
                installed: None,
                fixed_in: None,
                score: None,
                aliases: Vec::new(),
                reason: format!(
                    "The newest is from {}; vulnerabilities published later are not found. The limit is {most} days.",
                    d.date
                ),
                fix: "scan with a newer copy: `--advisories FOLDER`".to_owned(),
                url: None,
            })
            .collect();
        self.report.findings.extend(old);
        allow::apply(&mut self.report, &self.settings.allow, self.settings.now);
        self.report.finish()
    }

    /// Matches packages of one place against the advisories, and reports what was and was not matched.
    pub(super) fn packages(&mut self, place: &str, packages: &[Package]) {
        self.list(place, packages);
        packages.iter().for_each(|package| self.package(place, package));
    }

    /// Reports which packages of one place can be matched.
    fn list(&mut self, place: &str, packages: &[Package]) {
        let mut groups: BTreeMap<&str, u64> = BTreeMap::new();
        packages.iter().for_each(|p| *groups.entry(&p.ecosystem).or_default() += 1);
        for (ecosystem, count) in groups {
            let (what, name) = match ecosystem {
                CRATES => (format!("crates of {place}"), "Rust crates"),
                other => (format!("{other} packages of {place}"), other),
            };
            let required = ecosystem == CRATES || self.settings.require_os_advisories;
            match self.database.filter(|d| d.covers(ecosystem)) {
                Some(database) => {
                    let how = format!("matched against {} advisories", database.count());
                    self.report.listed(what, count, how);
                }
                None => {
                    let why = format!(
                        "not matched, because there is no advisory data for {}; packages: {count}",
                        spoken(name)
                    );
                    self.report.listed(&what, count, "listed, not matched");
                    self.report.not_looked_at(what, why, required);
                }
            }
        }
    }

    fn package(&mut self, place: &str, package: &Package) {
        let Some(database) = self.database else { return };
        let found = database.about(package);
        self.report.findings.extend(found.into_iter().map(|a| a.finding(package, place)));
    }

    /// Matches the files of `packages/` whose names are those of Python packages.
    pub(super) fn python_packages(&mut self, entries: &[Entry]) {
        let (mut packages, mut others) = (Vec::new(), Vec::new());
        for entry in entries.iter().filter(|entry| entry.path.starts_with(PACKAGES)) {
            let file = entry.path.rsplit('/').next().unwrap_or(&entry.path);
            match wheels::package(file) {
                Some(package) => {
                    self.package(&entry.path, &package);
                    packages.push(package);
                }
                None => others.push(file.to_owned()),
            }
        }
        self.list(PACKAGES, &packages);
        if !others.is_empty() {
            let why = format!("not matched, because their names are not those of Python packages: {}", some(&others));
            self.report.not_looked_at(format!("other files of {PACKAGES}"), why, false);
        }
    }

    /// Scans programs: by their SBOMs, by lock files in the same folder, and by the lists inside of them.
    pub(super) fn programs(&mut self, contents: &dyn Contents, entries: &[Entry]) {
        let mut known = false;
        for entry in entries {
            let name = entry.path.rsplit('/').next().unwrap_or(&entry.path);
            let packages = if entry.path.starts_with("sbom/") && name.ends_with(".cdx.json") {
                self.read(contents, &entry.path, LONGEST_LIST).and_then(|bytes| sbom::packages(&bytes))
            } else if name == "Cargo.lock" {
                self.read(contents, &entry.path, LONGEST_LIST)
                    .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()))
                    .and_then(|text| Ok(Lock::parse(&text)?.registry_packages()))
            } else {
                continue;
            };
            match packages {
                Ok(mut packages) => {
                    // The content of images is read from the images, once.
                    packages.retain(|p| p.ecosystem == CRATES);
                    known |= !packages.is_empty();
                    if !packages.is_empty() {
                        self.packages(&entry.path, &packages);
                    }
                }
                Err(why) => self.report.not_looked_at(&entry.path, why, true),
            }
        }
        let mut silent = Vec::new();
        for entry in entries.iter().filter(|e| e.path.starts_with("bin/")) {
            let open = || contents.open(&entry.path);
            match image::crates_of_program(&open) {
                Ok(Some(crates)) if !crates.is_empty() => self.packages(&entry.path, &crates),
                Ok(_) => silent.push(entry.path.as_str()),
                Err(error) => self.report.not_looked_at(&entry.path, error.to_string(), true),
            }
        }
        // Programs without any list of their crates were not scanned.
        if !known {
            for path in silent {
                self.report.not_looked_at(path, "there is no list of its crates", true);
            }
        }
    }

    fn read(&self, contents: &dyn Contents, path: &str, most: u64) -> Result<Vec<u8>, String> {
        let bytes = whole(contents, path, most).map_err(|e| e.to_string())?;
        bytes.ok_or_else(|| format!("it is longer than {most} bytes"))
    }

    pub(super) fn images(&mut self, contents: &dyn Contents, entries: &[Entry]) {
        if entries.iter().any(|e| e.path == "images/index.json") {
            let (images, unread) = image::images(contents, "images", self.settings.limits);
            self.report.listed("images", images.len() as u64, "read layer by layer");
            images.iter().for_each(|image| self.image(image));
            for (what, why) in unread {
                self.report.not_looked_at(what, why, true);
            }
        }
        for archive in entries.iter().filter(|e| e.path.starts_with("images/") && e.path.ends_with(".tar")) {
            self.report.not_looked_at(&archive.path, "only images in an OCI layout are read", true);
        }
    }

    pub(super) fn image(&mut self, image: &Image) {
        let place = match &image.platform {
            Some(platform) => format!("image {} ({platform})", image.name),
            None => format!("image {}", image.name),
        };
        self.packages(&place, &image.packages);
        for (path, crates) in &image.programs {
            self.packages(&format!("{place} /{path}"), crates);
        }
        if image.packages.is_empty() && image.programs.is_empty() {
            self.report.listed(format!("packages of {place}"), 0, "it has no list of packages");
        }
        self.report.listed(
            format!("files of {place}"),
            image.files,
            format!("{} text files scanned for secrets", image.texts),
        );
        for (what, why, required) in &image.unread {
            let required = *required || self.settings.require_os_advisories;
            self.report.not_looked_at(format!("{place}: {what}"), why, required);
        }
        self.report.findings.extend(image.secrets.iter().cloned());
        let root = matches!(image.user.split(':').next(), Some("" | "0" | "root"));
        if root {
            self.of_image(
                "image-root",
                Severity::Medium,
                "Its process runs as root",
                &place,
                "Root in a container is root for the kernel: one flaw in it gives an attacker the machine.".to_owned(),
                "set `USER` to a number other than 0 when it is built, or the user where it is run",
            );
        }
        if !image.setuid.is_empty() {
            self.of_image(
                "image-setuid",
                Severity::Low,
                "Setuid or setgid programs",
                &place,
                format!("They let any user become root: {}.", some(&image.setuid)),
                "remove them from the image, or run it with `no-new-privileges`",
            );
        }
        if !image.world_writable.is_empty() {
            self.of_image(
                "image-world-writable",
                Severity::Low,
                "World-writable files",
                &place,
                format!(
                    "Any process in the container can change what another one reads: {}.",
                    some(&image.world_writable)
                ),
                "remove the permission when the image is built: `chmod o-w`",
            );
        }
        if !image.shells.is_empty() {
            self.of_image(
                "image-shell",
                Severity::Info,
                "It contains a shell",
                &place,
                format!("An attacker can use it: {}.", some(&image.shells)),
                "remove it if the image does not need it",
            );
        }
    }

    fn of_image(&mut self, id: &str, severity: Severity, title: &str, place: &str, reason: String, fix: &str) {
        self.report.findings.push(Finding {
            id: id.to_owned(),
            kind: Kind::Image,
            severity,
            title: title.to_owned(),
            place: place.to_owned(),
            package: None,
            installed: None,
            fixed_in: None,
            score: None,
            aliases: Vec::new(),
            reason,
            fix: fix.to_owned(),
            url: None,
        });
    }

    /// Scans configurations in YAML or JSON: `configs/`, and compose files in any folder.
    pub(super) fn configurations(&mut self, contents: &dyn Contents, entries: &[Entry]) {
        let mut documents = Vec::new();
        for entry in entries {
            let name = entry.path.rsplit('/').next().unwrap_or(&entry.path);
            let format = [".yaml", ".yml", ".json"].iter().any(|e| name.ends_with(e));
            let data = ["images/", "models/", "sbom/", "packages/", "delta/"].iter().any(|f| entry.path.starts_with(f));
            if !format || data || entry.path == "manifest.json" {
                continue;
            }
            let read = self.read(contents, &entry.path, configuration::MOST_BYTES);
            match read.and_then(|bytes| Document::read(&entry.path, &bytes)) {
                Ok(of_file) => documents.extend(of_file),
                Err(why) => self.report.not_looked_at(&entry.path, why, true),
            }
        }
        self.checks(documents);
    }

    /// Scans configurations that are not files yet.
    pub(super) fn texts(&mut self, texts: &[(String, String)]) {
        let mut documents = Vec::new();
        for (name, text) in texts {
            match Document::read(name, text.as_bytes()) {
                Ok(of_file) => documents.extend(of_file),
                Err(why) => self.report.not_looked_at(name, why, true),
            }
            // Values of passwords are checked in the parsed documents, which can distinguish references.
            let reader: &mut dyn Read = &mut text.as_bytes();
            let looked =
                secrets::scan_file(name, text.len() as u64, ScanDepth::Shapes, reader, &mut self.report.findings);
            self.looked(name, looked);
        }
        self.report.listed("files", self.texts, "scanned for secrets");
        self.checks(documents);
    }

    fn checks(&mut self, mut documents: Vec<Document>) {
        configuration::share_phases(&mut documents);
        let how = format!("checked with {} rules", super::checks().count());
        self.report.listed("configurations", documents.len() as u64, how);
        self.report.findings.extend(configuration::findings(&documents));
    }

    /// Scans every text for secrets, and the permissions of keys.
    pub(super) fn files(&mut self, contents: &dyn Contents, entries: &[Entry]) {
        for entry in entries.iter().filter(|e| !e.path.starts_with("images/blobs/") && e.path != CARRIED) {
            let before = self.report.findings.len();
            self.report.findings.extend(secrets::by_name(&entry.path, &entry.path));
            let looked = contents.open(&entry.path).and_then(|mut reader| {
                secrets::scan_file(&entry.path, entry.size, care(&entry.path), &mut reader, &mut self.report.findings)
            });
            self.looked(&entry.path, looked);
            let private = self.report.findings[before..].iter().any(|f| f.id == "private-key" || f.id == "key-store");
            if private && entry.mode & 0o077 != 0 {
                self.report.findings.push(Finding {
                    id: "key-readable".to_owned(),
                    kind: Kind::Secret,
                    severity: Severity::High,
                    title: "A private key that other users can read".to_owned(),
                    place: entry.path.clone(),
                    package: None,
                    installed: None,
                    fixed_in: None,
                    score: None,
                    aliases: Vec::new(),
                    reason: format!("Its mode is {:04o}: every user of the machine can read it.", entry.mode & 0o7777),
                    fix: "run `chmod 600`, and replace the key if other users had access to the machine".to_owned(),
                    url: None,
                });
            }
        }
        self.report.listed("files", self.texts, "scanned for secrets");
    }

    fn looked(&mut self, path: &str, looked: io::Result<FileContent>) {
        match looked {
            Ok(FileContent::Text) => self.texts += 1,
            Ok(FileContent::Binary) => {}
            Ok(FileContent::TooLong) => {
                let why =
                    format!("text files larger than {} MiB are not scanned for secrets", secrets::MOST_BYTES >> 20);
                self.report.not_looked_at(path, why, false);
            }
            Err(error) => self.report.not_looked_at(path, error.to_string(), true),
        }
    }
}

/// Parsed documents distinguish references; vocabularies and lists contain any word.
fn care(path: &str) -> ScanDepth {
    let documents = [".yaml", ".yml", ".json"].iter().any(|e| path.ends_with(e));
    let lists =
        ["models/", "sbom/", "packages/"].iter().any(|folder| path.starts_with(folder)) || path == "manifest.json";
    if documents || lists { ScanDepth::Shapes } else { ScanDepth::All }
}

/// `Debian:12` in readable form.
fn spoken(ecosystem: &str) -> String {
    match ecosystem {
        "Rust crates" => ecosystem.to_owned(),
        other => other.to_lowercase().replace(':', " "),
    }
}

fn some(list: &[String]) -> String {
    let named = list[..list.len().min(NAMED)].join(", ");
    if list.len() > NAMED { format!("{named} and {} more", list.len() - NAMED) } else { named }
}
