//! Scans in files, by the names that older scripts expect: `scan_<image>.json`, `scan_configs.json`,
//! `scan_python_packages.json`.

use std::collections::BTreeSet;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_files::Replace;

use super::{from_json, to_json};
use crate::scan::{Error, Report};

const CONFIGS: &str = "scan_configs.json";
const PACKAGES: &str = "scan_python_packages.json";
/// No scan's document is longer.
const MOST_BYTES: u64 = 256 << 20;

/// `docker.io/library/postgres:15` is `scan_postgres.json`.
pub fn legacy_name(image: &str) -> String {
    let without_digest = image.split('@').next().unwrap_or(image);
    let last = without_digest.rsplit('/').next().unwrap_or(without_digest);
    let name = last.strip_prefix("sha256:").unwrap_or_else(|| last.split(':').next().unwrap_or(last));
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    format!("scan_{}.json", name.chars().map(plain).collect::<String>())
}

/// Writes one file per image, and those of the scans of configurations and of Python packages, where there are such.
/// Two images of one name get numbers.
pub fn write_legacy(
    folder: &Utf8Path,
    images: &[(String, Report)],
    configs: Option<&Report>,
    packages: Option<&Report>,
) -> io::Result<Vec<Utf8PathBuf>> {
    let mut taken = BTreeSet::from([CONFIGS, PACKAGES].map(str::to_owned));
    let mut written = Vec::new();
    for (image, report) in images {
        let name = legacy_name(image);
        let stem = name.trim_end_matches(".json").to_owned();
        let free = |taken: &BTreeSet<String>| {
            (2..).map(|n| format!("{stem}-{n}.json")).find(|name| !taken.contains(name)).unwrap_or_default()
        };
        let name = if taken.contains(&name) { free(&taken) } else { name };
        let path = folder.join(&name);
        Replace::umask().write(&path, &to_json(report))?;
        taken.insert(name);
        written.push(path);
    }
    for (name, report) in [(CONFIGS, configs), (PACKAGES, packages)] {
        let Some(report) = report else { continue };
        let path = folder.join(name);
        Replace::umask().write(&path, &to_json(report))?;
        written.push(path);
    }
    Ok(written)
}

/// The scans whose files fit a pattern such as `scans/scan_*.json`; `*` is allowed in the file name, not in folders. Sorted by name.
pub fn from_pattern(pattern: &str) -> Result<Vec<Report>, Error> {
    let path = Utf8Path::new(pattern);
    let name = path.file_name().unwrap_or_default();
    let folder = path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    let read = |path: &Utf8Path| -> Result<Report, Error> {
        let failed = |source| Error::Read { path: path.to_string(), source };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MOST_BYTES {
            let why = format!("longer than {MOST_BYTES} bytes");
            return Err(Error::Report { path: path.to_string(), why });
        }
        from_json(&std::fs::read(path).map_err(failed)?, path.as_str())
    };
    if !name.contains('*') {
        return Ok(vec![read(path)?]);
    }
    let failed = |source| Error::Read { path: folder.to_string(), source };
    let mut names = Vec::new();
    for entry in folder.read_dir_utf8().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if fits(name, entry.file_name()) {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    if names.is_empty() {
        return Err(Error::Report { path: pattern.to_owned(), why: "there is no such file".to_owned() });
    }
    names.iter().map(|name| read(&folder.join(name))).collect()
}

fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_report_names_match_those_of_older_scripts() {
        for (image, name) in [
            ("docker.io/library/postgres:15", "scan_postgres.json"),
            ("textnlp-api:1.0.0", "scan_textnlp-api.json"),
            ("registry.example.com:5000/a/b@sha256:00", "scan_b.json"),
            ("sha256:0123", "scan_0123.json"),
        ] {
            assert_eq!(legacy_name(image), name);
        }
    }

    #[test]
    fn glob_star_matches_within_the_file_name() {
        assert!(fits("scan_*.json", "scan_a.json") && fits("*", "a") && fits("a*b*c", "a1b2c") && fits("a", "a"));
        assert!(!fits("scan_*.json", "scan_a.html") && !fits("a*b*c", "a1c") && !fits("a", "ab"));
    }
}
