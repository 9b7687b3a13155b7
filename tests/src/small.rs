//! A filesystem of limited size, to test full disks. Mounting needs root.

use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

/// A mounted filesystem; it is unmounted, and its content lost, when the value is dropped.
pub struct Small(Utf8PathBuf);

impl Small {
    /// Mounts a filesystem at `place`, which is created if necessary. `None` with a message if mounting is not
    /// permitted; a failure if the tests require all tools.
    #[allow(clippy::print_stderr)]
    pub fn mount(place: impl Into<Utf8PathBuf>, options: &str) -> Option<Self> {
        let place = place.into();
        std::fs::create_dir_all(&place).expect("make the place of a filesystem");
        if call("mount", &["-t", "tmpfs", "-o", options, "tmpfs", place.as_str()]) {
            return Some(Self(place));
        }
        let why = "a filesystem cannot be mounted";
        assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "{why}");
        eprintln!("LEFT OUT: {why} here, which only root may");
        None
    }

    /// The mount point.
    pub fn place(&self) -> &Utf8Path {
        &self.0
    }

    /// Changes the size or the mount options.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(call("mount", &["-o", &options, self.0.as_str()]), "mount -o {options} {}", self.0);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        call("umount", &["-l", self.0.as_str()]);
    }
}

fn call(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
