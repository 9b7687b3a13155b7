//! Paths within a site's folder, and the checks of them.

use std::sync::LazyLock;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};
use textnlp_files::{Exposed, check_folder};
use textnlp_provider::{CloudId, Error, ErrorKind, ResourceId, Result, SiteName};

use crate::files;

/// The folders of a site, in the order of their creation.
pub(crate) const FOLDERS: [&str; 9] = ["objects", "units", "run", "log", "data", "config", "models", "certs", "bin"];

/// The folders with what runs and what is trusted. `run`, `log` and `data` may belong to the users of services.
const CHECKED: [&str; 6] = ["objects", "units", "config", "models", "certs", "bin"];

/// The longest path of a Unix socket, without the terminating zero.
pub const SOCKET_PATH_MAX: usize = 107;

/// The longest site folder: `/run/` and a usual socket name must still fit behind it.
const ROOT_MAX: usize = SOCKET_PATH_MAX - 36;

/// The folder of one site: `STATE/sites/SITE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteFolder {
    root: Utf8PathBuf,
}

impl SiteFolder {
    /// The folder of `site` within a state folder.
    pub fn of(state: &Utf8Path, site: &SiteName) -> Self {
        Self { root: state.join("sites").join(site.as_str()) }
    }

    /// A site's folder by its path.
    pub fn at(root: &Utf8Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// The environment's state folder, two levels up.
    pub fn state(&self) -> &Utf8Path {
        self.root.parent().and_then(Utf8Path::parent).unwrap_or(&self.root)
    }

    /// Appends what other users control of the folders with programs, their configuration, keys and models, and of the
    /// content of those down to `depth` levels.
    pub fn check_owners(&self, depth: usize, found: &mut Vec<Exposed>) -> textnlp_files::Result<()> {
        let before = found.len();
        check_folder(&self.root, 0, found)?;
        for folder in CHECKED {
            if found.len() > before {
                break;
            }
            check_folder(self.root.join(folder), depth, found)?;
        }
        Ok(())
    }

    /// The path of a relative path of a spec.
    pub fn join(&self, relative: &str) -> Utf8PathBuf {
        self.root.join(relative)
    }

    /// The marker of a resource.
    pub fn marker(&self, id: &ResourceId) -> Utf8PathBuf {
        let name: Vec<&str> = id.as_str().split('/').skip(1).collect();
        self.root.join("objects").join(format!("{}.json", name.join(".")))
    }

    /// The file of a supervised program.
    pub fn unit(&self, name: &str) -> Utf8PathBuf {
        self.root.join("units").join(format!("{name}.json"))
    }

    /// The lock that a running program holds.
    pub fn lock(&self, name: &str) -> Utf8PathBuf {
        self.root.join("run").join(format!("{name}.lock"))
    }

    /// The file with a program's process id.
    pub fn pid(&self, name: &str) -> Utf8PathBuf {
        self.root.join("run").join(format!("{name}.pid"))
    }

    /// A program's log file.
    pub fn log(&self, name: &str) -> Utf8PathBuf {
        self.root.join("log").join(format!("{name}.log"))
    }

    /// The folder of sockets: `run/`, or a short one when the site's own path is too long for a socket address.
    ///
    /// The short one is the recorded one, else one named after the site's path; if another user took that name, one with
    /// a name that other users cannot foresee. It is not in `$XDG_RUNTIME_DIR`, which is removed at logout.
    pub fn sockets(&self) -> Utf8PathBuf {
        if !self.has_short_sockets() {
            return self.root.join("run");
        }
        // Not a link to any other folder: `down` removes it.
        let recorded = self.sockets_record().read_link_utf8().ok().filter(|path| is_short_folder(path));
        let named = short_folder(&self.root, "");
        recorded.into_iter().chain([named]).find(|path| files::is_free_or_own(path)).unwrap_or_else(|| {
            static UNFORESEEN: LazyLock<String> = LazyLock::new(textnlp_files::unique_name);
            short_folder(&self.root, &UNFORESEEN)
        })
    }

    /// The link to the short folder of sockets.
    pub(crate) fn sockets_record(&self) -> Utf8PathBuf {
        self.root.join("sockets")
    }

    /// Whether [`Self::sockets`] lies outside the site's folder.
    pub fn has_short_sockets(&self) -> bool {
        self.root.as_str().len() > ROOT_MAX
    }

    /// A program's Unix socket.
    pub fn socket(&self, name: &str) -> Utf8PathBuf {
        self.sockets().join(format!("{name}.sock"))
    }

    /// The supervisor's control socket.
    pub fn control(&self) -> Utf8PathBuf {
        self.socket("supervisor")
    }

    /// The cloud id of an object: its path relative to the state folder, so that it survives a move of that folder.
    pub fn cloud_id(&self, relative: &str) -> Result<CloudId> {
        let site = self.root.file_name().unwrap_or_default();
        CloudId::new(format!("sites/{site}/{relative}"))
            .map_err(|error| Error::new(ErrorKind::Invalid, "name object", relative).because(error))
    }

    /// Refuses a path that leaves the site's folder, by `..`, by being absolute, or through a symbolic link.
    pub fn inside(&self, relative: &str) -> Result<Utf8PathBuf> {
        let refused = |why: &'static str| Error::new(ErrorKind::Invalid, "use path", relative).because(why);
        let path = Utf8Path::new(relative);
        if relative.is_empty() || !path.components().all(|c| matches!(c, camino::Utf8Component::Normal(_))) {
            return Err(refused("it leaves the site's folder"));
        }
        let mut walked = self.root.clone();
        let parents = path.parent().into_iter().flat_map(|parent| parent.components());
        for part in parents {
            walked.push(part.as_str());
            match std::fs::symlink_metadata(&walked) {
                Ok(found) if found.file_type().is_symlink() => {
                    return Err(refused("its path contains a symbolic link"));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                Err(error) => return Err(Error::io("check", walked.as_str(), error)),
            }
        }
        Ok(self.root.join(path))
    }
}

fn short_folder(root: &Utf8Path, suffix: &str) -> Utf8PathBuf {
    let digest = hex::encode(Sha256::digest(format!("{root}{suffix}")));
    Utf8PathBuf::from(format!("/tmp/textnlp-{}", &digest[..16]))
}

fn is_short_folder(path: &Utf8Path) -> bool {
    let digest = path.as_str().strip_prefix("/tmp/textnlp-");
    digest.is_some_and(|digest| digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_name_of_a_short_socket_folder_is_avoided() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().join("x".repeat(90))).unwrap();
        let folder = SiteFolder::at(&root);
        std::fs::create_dir(&root).unwrap();
        let named = folder.sockets();
        assert_eq!(named, short_folder(&root, ""));
        // Another user's folder: like one that others may enter, it is not used.
        std::fs::create_dir(&named).unwrap();
        std::fs::set_permissions(&named, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let other = folder.sockets();
        assert!(other != named && other.as_str().len() == named.as_str().len(), "{other}");
        files::make_sockets_folder(&folder).unwrap();
        assert_eq!(
            (folder.sockets(), folder.sockets_record().read_link_utf8().unwrap()),
            (other.clone(), other.clone())
        );
        // The recorded one stays when the name is free again.
        std::fs::remove_dir(&named).unwrap();
        assert_eq!(folder.sockets(), other);
        files::remove_sockets_folder(&folder).unwrap();
        assert!(!other.exists() && folder.sockets_record().symlink_metadata().is_err());
        assert_eq!(folder.sockets(), named);
        // A record of another author does not choose what is removed.
        let precious = dir.path().join("precious");
        std::fs::create_dir(&precious).unwrap();
        std::fs::set_permissions(&precious, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&precious, folder.sockets_record()).unwrap();
        assert_eq!(folder.sockets(), named);
        files::remove_sockets_folder(&folder).unwrap();
        assert!(precious.is_dir());
    }

    #[test]
    fn long_state_paths_get_short_socket_paths() {
        let site = SiteName::new("here").unwrap();
        let near = SiteFolder::of(Utf8Path::new("/home/a/p/.textnlp/staging"), &site);
        assert_eq!(near.control(), "/home/a/p/.textnlp/staging/sites/here/run/supervisor.sock");
        let far = SiteFolder::of(Utf8Path::new(&format!("/{}", "x".repeat(90))), &site);
        assert!(far.socket("server-10-metrics").as_str().len() <= SOCKET_PATH_MAX);
        assert_eq!(far.sockets(), far.sockets(), "the same folder always has the same sockets");
    }

    #[test]
    fn site_paths_stay_within_the_site_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        let folder = SiteFolder::at(&root);
        std::os::unix::fs::symlink("/etc", root.join("config")).unwrap();
        assert!(folder.inside("data/textnlp.db").is_ok());
        for bad in ["", "/etc/passwd", "../x", "data/../../x", "config/passwd"] {
            assert!(folder.inside(bad).is_err(), "{bad}");
        }
    }
}
