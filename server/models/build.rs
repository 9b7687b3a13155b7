//! Lists the files of the model that ships with the program, so that they are compiled into it.
#![allow(clippy::print_stdout, reason = "standard output is how a build script speaks to cargo")]

use std::fmt::Write as _;
use std::{env, fs, io, path::PathBuf};

#[path = "src/names.rs"]
mod names;

fn main() -> io::Result<()> {
    let variable =
        |name: &str| env::var_os(name).map(PathBuf::from).ok_or_else(|| io::Error::other(format!("{name} is not set")));
    let folder = variable("CARGO_MANIFEST_DIR")?.join("bundled/textnlp-tiny");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/names.rs");
    // The parent is always there; the folder itself may not be yet, and cargo would then rebuild every time.
    println!("cargo::rerun-if-changed=bundled");

    let mut files = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if entry.file_type()?.is_file() && names::belongs(&name) {
                files.push((name, entry.path()));
            }
        }
    }
    files.sort();

    let mut text = String::from("&[\n");
    for (name, path) in &files {
        println!("cargo::rerun-if-changed={}", path.display());
        writeln!(text, "    ({name:?}, include_bytes!({:?})),", path.display().to_string())
            .map_err(io::Error::other)?;
    }
    text.push_str("]\n");
    fs::write(variable("OUT_DIR")?.join("bundled.rs"), text)
}
