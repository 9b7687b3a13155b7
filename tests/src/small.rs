//! A filesystem of a size of its own, for disks that are full. Only who may mount has one.

use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

/// It is there for as long as this lives, and what is on it goes along.
pub struct Small(Utf8PathBuf);

impl Small {
    /// Mounts one at `place`, which is made if need be. `None`, said loudly, where that is not permitted; where everything must be
    /// there, that is a failure.
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

    /// Where it is.
    pub fn place(&self) -> &Utf8Path {
        &self.0
    }

    /// Another size, other rights.
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
