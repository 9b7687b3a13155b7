//! Unit files: the programs that the supervisor keeps running. They are validated before use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use textnlp_keys::{SiteFolder, files};

/// Far above the size of any unit file.
const UNIT_MAX: u64 = 256 << 10;

/// One program that a site's supervisor keeps running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Its name, which is also the file's.
    pub name: String,
    /// The program, by an absolute path, and its arguments.
    pub argv: Vec<String>,
    /// Variables added to the cleaned environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its working directory.
    pub cwd: Utf8PathBuf,
    /// The operation that wrote this file.
    pub operation: u64,
    /// The lineage of the deployment.
    pub lineage: String,
    /// A program with another digest is restarted.
    pub spec_digest: String,
    /// A program with another reload digest gets SIGHUP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_digest: Option<String>,
    /// The grace period before it is killed, in milliseconds.
    pub stop_grace_ms: u64,
    /// Its readiness check; without one, a living process is ready.
    #[serde(default)]
    pub ready: Option<Ready>,
    /// The file of its output.
    pub log: Utf8PathBuf,
    /// Units of one group are restarted one at a time, each only while the others are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Whether the sites of this machine restart such programs one at a time: a site whose relay is down looks like a
    /// failed site.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub turns: bool,
    /// Files whose change is notified by SIGHUP: certificates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<Utf8PathBuf>,
    /// Listening sockets that outlive the program, so that clients wait for its successor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps_sockets: Option<KeepsSockets>,
    /// Whether it should run.
    #[serde(default)]
    pub state: State,
}

/// The listening sockets that outlive a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepsSockets {
    /// The Unix socket where the program sends them.
    pub from: Utf8PathBuf,
    /// Its addresses; sockets of other addresses are not kept.
    pub addresses: Vec<SocketAddr>,
}

/// Whether a unit should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It should.
    #[default]
    Running,
    /// It should not. A missing unit file stops nothing.
    Stopped,
}

/// The readiness check of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// The Unix socket that it answers HTTP on.
    pub unix: Utf8PathBuf,
    /// The path that answers 200.
    pub path: String,
}

impl Unit {
    /// Reads and validates a unit file. The error says what is wrong with it.
    pub(crate) fn read(folder: &SiteFolder, name: &str) -> Result<Self, String> {
        let path = folder.unit(name);
        let found = std::fs::symlink_metadata(&path).map_err(|error| error.to_string())?;
        if !found.is_file() {
            return Err("it is not a plain file".to_owned());
        }
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err("other users can write to it".to_owned());
        }
        let bytes = files::read_bounded(&path, UNIT_MAX).map_err(|error| error.to_string())?;
        let unit: Self = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        unit.check(folder, name)?;
        Ok(unit)
    }

    fn check(&self, folder: &SiteFolder, name: &str) -> Result<(), String> {
        if self.name != name || !is_name(name) {
            return Err(format!("its name is `{}`, not that of the file", short(&self.name)));
        }
        let texts = self.argv.iter().chain(self.env.keys()).chain(self.env.values()).chain([&self.lineage]);
        if texts.clone().any(|text| text.contains('\0'))
            || self.env.keys().any(|key| key.is_empty() || key.contains('='))
        {
            return Err("an argument in it contains a NUL byte".to_owned());
        }
        if !self.argv.first().is_some_and(|program| program.starts_with('/')) {
            return Err("`argv` does not begin with an absolute path".to_owned());
        }
        if !self.cwd.is_absolute() {
            return Err("`cwd` is not an absolute path".to_owned());
        }
        if !within(&self.log, &folder.join("log")) {
            return Err(format!("`log` is outside {}", folder.join("log")));
        }
        if let Some(ready) = &self.ready {
            let plain = ready.path.starts_with('/') && ready.path.bytes().all(|byte| byte.is_ascii_graphic());
            if !within(&ready.unix, &folder.sockets()) || !plain {
                return Err("`ready` is not a socket of this site with a plain path".to_owned());
            }
        }
        if let Some(keeps) = &self.keeps_sockets
            && (!within(&keeps.from, &folder.sockets()) || keeps.addresses.len() > 8)
        {
            return Err("`keeps_sockets` is not a socket of this site with a few addresses".to_owned());
        }
        if let Some(file) = self.watch.iter().find(|file| !file.is_absolute()) {
            return Err(format!("`watch` holds `{file}`, which is not an absolute path"));
        }
        Ok(())
    }
}

/// The names of all unit files.
pub(crate) fn names(folder: &SiteFolder) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder.join("units"))? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".json")).filter(|name| is_name(name)) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Every name that may have a process: of a unit file, or of a lock whose unit file is gone, such as the supervisor's.
pub(crate) fn names_with_locks(folder: &SiteFolder) -> std::io::Result<BTreeSet<String>> {
    let mut all: BTreeSet<String> = or_none(names(folder))?.into_iter().collect();
    for entry in or_none(std::fs::read_dir(folder.join("run")).and_then(Iterator::collect::<std::io::Result<Vec<_>>>))?
    {
        let name = entry.file_name().into_string().unwrap_or_default();
        all.extend(name.strip_suffix(".lock").filter(|name| is_name(name)).map(str::to_owned));
    }
    Ok(all)
}

/// What a folder has; nothing if it does not exist.
fn or_none<T>(read: std::io::Result<Vec<T>>) -> std::io::Result<Vec<T>> {
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// Lower-case letters, digits and hyphens: safe as a file name.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=60).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
}

fn within(path: &Utf8Path, folder: &Utf8Path) -> bool {
    path.strip_prefix(folder).is_ok_and(|rest| {
        let mut parts = rest.components();
        matches!(parts.next(), Some(Utf8Component::Normal(_))) && parts.next().is_none()
    })
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Unit)) -> Result<Unit, String> {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        let folder = SiteFolder::at(&root);
        std::fs::create_dir(root.join("units")).unwrap();
        let mut unit = Unit {
            name: "server-0".to_owned(),
            argv: vec!["/bin/true".to_owned()],
            env: BTreeMap::new(),
            cwd: root.clone(),
            operation: 1,
            lineage: "l".to_owned(),
            spec_digest: "d".to_owned(),
            reload_digest: None,
            stop_grace_ms: 1,
            ready: Some(Ready { unix: folder.socket("server-0"), path: "/ready".to_owned() }),
            log: folder.log("server-0"),
            group: None,
            turns: false,
            watch: Vec::new(),
            keeps_sockets: Some(KeepsSockets { from: folder.socket("server-0"), addresses: Vec::new() }),
            state: State::Running,
        };
        change(&mut unit);
        files::put(&folder.unit("server-0"), &serde_json::to_vec(&unit).unwrap(), 0o600).unwrap();
        Unit::read(&folder, "server-0")
    }

    #[test]
    fn valid_unit_is_accepted() {
        check(|_| {}).unwrap();
    }

    #[test]
    fn invalid_units_are_refused() {
        let cases: [fn(&mut Unit); 10] = [
            |unit| unit.keeps_sockets.as_mut().unwrap().from = "/run/docker.sock".into(),
            |unit| unit.name = "other".to_owned(),
            |unit| unit.argv.clear(),
            |unit| unit.argv[0] = "sh".to_owned(),
            |unit| unit.argv.push("a\0b".to_owned()),
            |unit| unit.log = "/etc/passwd".into(),
            |unit| unit.log = unit.log.parent().unwrap().join("../../x"),
            |unit| unit.ready.as_mut().unwrap().unix = "/run/docker.sock".into(),
            |unit| unit.ready.as_mut().unwrap().path = "/ HTTP/1.1\r\nX: y".to_owned(),
            |unit| unit.env.extend([("A=B".to_owned(), String::new())]),
        ];
        for (number, case) in cases.into_iter().enumerate() {
            assert!(check(case).is_err(), "case {number}");
        }
    }

    #[test]
    fn writable_or_symlinked_unit_file_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(&Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap());
        std::fs::create_dir(folder.join("units")).unwrap();
        std::fs::write(folder.unit("a"), "{}").unwrap();
        std::fs::set_permissions(folder.unit("a"), std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(Unit::read(&folder, "a").unwrap_err(), "other users can write to it");
        std::os::unix::fs::symlink(folder.unit("a"), folder.unit("b")).unwrap();
        assert_eq!(Unit::read(&folder, "b").unwrap_err(), "it is not a plain file");
    }
}
