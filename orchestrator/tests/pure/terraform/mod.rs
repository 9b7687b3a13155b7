//! What is exchanged with Terraform and OpenTofu: our record as their configuration, their state as proposals for our record.

mod export;
mod import;

use std::process::Command;

use camino::Utf8Path;

/// One of the tools, in a folder with a configuration; nothing, said loudly, where neither is installed.
struct Tool<'a> {
    name: &'static str,
    folder: &'a Utf8Path,
}

impl<'a> Tool<'a> {
    fn find(folder: &'a Utf8Path) -> Option<Self> {
        let found = ["tofu", "terraform"].into_iter().find(|tool| Command::new(tool).arg("version").output().is_ok());
        if found.is_none() {
            eprintln!("LEFT OUT: neither tofu nor terraform is installed, and neither is in a package registry");
        }
        Some(Self { name: found?, folder })
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        let mut command = Command::new(self.name);
        command.args(args).current_dir(self.folder).env("CHECKPOINT_DISABLE", "1").env("TF_IN_AUTOMATION", "1");
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&out.stderr));
        said
    }
}
