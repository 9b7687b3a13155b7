//! The layers of an image as streams: the final filesystem, and the secrets in any layer.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use super::{Image, Limits, elf, installed};
use crate::scan::package::Package;
use crate::scan::secrets::{self, FileContent, ScanDepth};

/// No list of packages is longer.
const LONGEST_LIST: u64 = 32 << 20;
/// Programs up to this size are looked into for their list of crates; they are held in memory for that.
const LARGEST_PROGRAM: u64 = 64 << 20;
/// More paths than this of one sort are counted, not named.
const MOST_NAMED: usize = 1000;
/// More secrets than this in one image are one finding.
const MOST_SECRETS: usize = 500;

/// What a path of the file system is, as far as a scan wants to know.
enum PathKind {
    List(Vec<u8>),
    Apk(Vec<u8>),
    Release(Vec<u8>),
    Python(Package),
    Program(Vec<Package>),
    Rpm,
    Setuid(String),
    WorldWritable,
    Shell,
}

pub(super) struct Walk<'a> {
    limits: Limits,
    image: &'a mut Image,
    /// By path, with the layer that brought it.
    found: BTreeMap<String, (usize, Vec<PathKind>)>,
    layer: usize,
    entries: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(limits: Limits, image: &'a mut Image) -> Walk<'a> {
        Walk { limits, image, found: BTreeMap::new(), layer: 0, entries: 0 }
    }

    pub(super) fn unread(&mut self, what: String, why: String, required: bool) {
        self.image.unread.push((what, why, required));
    }

    /// One layer; an error says why it was not read to its end.
    pub(super) fn layer(&mut self, name: &str, size: u64, reader: Box<dyn Read + '_>) -> Result<(), String> {
        self.layer += 1;
        let mut reader = BufReader::with_capacity(64 << 10, reader);
        let start = reader.fill_buf().map_err(|e| e.to_string())?;
        let most = size.saturating_mul(self.limits.ratio).saturating_add(self.limits.spare);
        let plain: Box<dyn Read + '_> = if start.starts_with(&[0x1f, 0x8b]) {
            Box::new(flate2::bufread::MultiGzDecoder::new(reader))
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Err("it is compressed with zstd, which is not supported".to_owned());
        } else {
            Box::new(reader)
        };
        let mut archive = tar::Archive::new(BoundedReader { inner: plain, left: most });
        let entries = archive.entries().map_err(|e| e.to_string())?;
        for entry in entries {
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(format!("the image has more than {} files", self.limits.entries));
            }
            self.entry(name, entry.map_err(|e| e.to_string())?)?;
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, layer: &str, mut entry: tar::Entry<'_, R>) -> Result<(), String> {
        let Ok(raw) = String::from_utf8(entry.path_bytes().into_owned()) else { return Ok(()) };
        let Some(path) = normal(&raw) else { return Ok(()) };
        let (folder, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(folder, name)| (folder, name));
        if name == ".wh..wh..opq" {
            // Whatever lower layers have in this folder is hidden.
            let current = self.layer;
            self.drop_under(folder, |layer| layer < current);
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(".wh.") {
            let gone = if folder.is_empty() { gone.to_owned() } else { format!("{folder}/{gone}") };
            self.found.remove(&gone);
            self.drop_under(&gone, |_| true);
            return Ok(());
        }
        let kind = entry.header().entry_type();
        let mode = entry.header().mode().unwrap_or(0);
        self.found.remove(&path);
        let mut what = Vec::new();
        if kind.is_dir() {
            if mode & 0o1002 == 0o002 {
                what.push(PathKind::WorldWritable);
            }
        } else {
            self.drop_under(&path, |_| true);
            if kind.is_symlink() {
                // A link's mode says nothing; but `bin/sh` may well be one.
                what.extend(shell(&path));
            } else if kind.is_file() || kind.is_hard_link() {
                if mode & 0o6000 != 0 {
                    what.push(PathKind::Setuid(format!("{:04o}", mode & 0o7777)));
                }
                if mode & 0o002 != 0 {
                    what.push(PathKind::WorldWritable);
                }
                if mode & 0o111 != 0 {
                    what.extend(shell(&path));
                }
                if kind.is_file() {
                    self.image.files += 1;
                    self.file(layer, &path, mode, &mut entry, &mut what).map_err(|e| e.to_string())?;
                }
            }
        }
        if !what.is_empty() {
            self.found.insert(path, (self.layer, what));
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        layer: &str,
        path: &str,
        mode: u32,
        entry: &mut tar::Entry<'_, R>,
        what: &mut Vec<PathKind>,
    ) -> io::Result<()> {
        let size = entry.size();
        if let Some(wanted) = wanted(path) {
            if size > LONGEST_LIST {
                self.unread(path.to_owned(), format!("it is longer than {LONGEST_LIST} bytes"), true);
                return Ok(());
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            match wanted {
                PackageSource::Dpkg => what.push(PathKind::List(bytes)),
                PackageSource::Apk => what.push(PathKind::Apk(bytes)),
                PackageSource::Release => what.push(PathKind::Release(bytes)),
                PackageSource::Rpm => what.push(PathKind::Rpm),
                PackageSource::Python => {
                    what.extend(installed::python(&String::from_utf8_lossy(&bytes)).map(PathKind::Python));
                }
            }
            return Ok(());
        }
        let mut start = Vec::new();
        (&mut *entry).take(8192).read_to_end(&mut start)?;
        if start.starts_with(b"\x7fELF") {
            if mode & 0o111 != 0 && size <= LARGEST_PROGRAM {
                entry.read_to_end(&mut start)?;
                let crates = elf::crates(&|| Ok(Box::new(start.as_slice()) as Box<dyn Read>))?;
                what.extend(crates.filter(|c| !c.is_empty()).map(PathKind::Program));
            }
            return Ok(());
        }
        if self.image.secrets.len() >= MOST_SECRETS {
            return Ok(());
        }
        let location = format!("{} {layer}/{path}", self.image.name);
        self.image.secrets.extend(secrets::by_name(&location, path));
        let mut reader = start.as_slice().chain(entry);
        if secrets::scan_file(&location, size, care(path), &mut reader, &mut self.image.secrets)? == FileContent::Text {
            self.image.texts += 1;
        }
        if self.image.secrets.len() >= MOST_SECRETS {
            let why = format!("there are {MOST_SECRETS} secrets in it already");
            self.unread("the remaining text files".to_owned(), why, false);
        }
        Ok(())
    }

    fn drop_under(&mut self, folder: &str, which: impl Fn(usize) -> bool) {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let inside = self.found.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        let gone: Vec<String> = inside.filter(|(_, (layer, _))| which(*layer)).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.found.remove(&path);
        }
    }

    /// Computes the file system that results from all layers.
    pub(super) fn finish(self) {
        let Walk { image, found, .. } = self;
        let release = ["etc/os-release", "usr/lib/os-release"].iter().find_map(|path| {
            let (_, what) = found.get(*path)?;
            what.iter().find_map(|w| match w {
                PathKind::Release(bytes) => installed::distribution(&String::from_utf8_lossy(bytes)),
                _ => None,
            })
        });
        let or = |other: &str| release.clone().unwrap_or_else(|| other.to_owned());
        let mut rpm = false;
        for (path, (_, what)) in &found {
            for what in what {
                match what {
                    PathKind::List(bytes) => {
                        image.packages.extend(installed::dpkg(&String::from_utf8_lossy(bytes), &or("Debian")));
                    }
                    PathKind::Apk(bytes) => {
                        image.packages.extend(installed::apk(&String::from_utf8_lossy(bytes), &or("Alpine")));
                    }
                    PathKind::Python(package) => image.packages.push(package.clone()),
                    PathKind::Program(crates) => {
                        image.programs.insert(path.clone(), crates.clone());
                    }
                    PathKind::Rpm => rpm = true,
                    PathKind::Setuid(mode) => named(&mut image.setuid, &format!("{path} ({mode})")),
                    PathKind::WorldWritable => named(&mut image.world_writable, path),
                    PathKind::Shell => named(&mut image.shells, path),
                    PathKind::Release(_) => {}
                }
            }
        }
        if rpm {
            image.unread.push(("its RPM packages".to_owned(), "RPM databases are not supported".to_owned(), false));
        }
        image.packages.sort();
        image.packages.dedup();
        image.distribution = release;
    }
}

fn named(list: &mut Vec<String>, path: &str) {
    if list.len() < MOST_NAMED {
        list.push(path.to_owned());
    }
}

enum PackageSource {
    Dpkg,
    Apk,
    Release,
    Rpm,
    Python,
}

fn wanted(path: &str) -> Option<PackageSource> {
    match path {
        "var/lib/dpkg/status" => Some(PackageSource::Dpkg),
        "lib/apk/db/installed" | "usr/lib/apk/db/installed" => Some(PackageSource::Apk),
        "etc/os-release" | "usr/lib/os-release" => Some(PackageSource::Release),
        _ => {
            if path.strip_prefix("var/lib/dpkg/status.d/").is_some_and(|name| !name.ends_with(".md5sums")) {
                return Some(PackageSource::Dpkg);
            }
            let rpm = path.strip_prefix("var/lib/rpm/").or_else(|| path.strip_prefix("usr/lib/sysimage/rpm/"));
            if rpm.is_some_and(|name| ["Packages", "Packages.db", "rpmdb.sqlite"].contains(&name)) {
                return Some(PackageSource::Rpm);
            }
            path.ends_with(".dist-info/METADATA").then_some(PackageSource::Python)
        }
    }
}

/// Files of packages contain many example passwords, so these are searched for only where images add files.
fn care(path: &str) -> ScanDepth {
    let added = ["etc/", "root/", "home/", "app/", "opt/", "srv/", "run/", "tmp/", "var/www/", "workspace/"];
    let first = !path.contains('/') || added.iter().any(|folder| path.starts_with(folder));
    if first { ScanDepth::All } else { ScanDepth::Shapes }
}

fn shell(path: &str) -> Option<PathKind> {
    let (folder, name) = path.rsplit_once('/')?;
    let folders = ["bin", "usr/bin", "usr/local/bin", "sbin", "busybox"];
    let names = ["sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "busybox"];
    (folders.contains(&folder) && names.contains(&name)).then_some(PathKind::Shell)
}

/// Without `./` in front and `/` behind. `None` for the root, and for names that lead elsewhere: no engine unpacks those either.
fn normal(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// Limits decompressed bytes; a decompression bomb ends with an error.
struct BoundedReader<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for BoundedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("it unpacks to more than an image may have: not read further"))?;
        Ok(read)
    }
}
