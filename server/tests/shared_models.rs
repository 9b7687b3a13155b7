//! Pods on several nodes that share one volume of models: each is process number 1 of its own, so that no number tells them apart. Needs
//! root and `unshare` (Debian: util-linux); left out loudly elsewhere.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::process::{Child, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_textnlp-server");
const PODS: usize = 4;
const ROUNDS: usize = 4;

/// The init container of a pod.
fn pod(folder: &Utf8Path, shared: &Utf8Path, digest: &str) -> Child {
    std::fs::create_dir_all(folder).unwrap();
    let list = folder.join("models.yaml");
    let model =
        json!({ "name": "textnlp-tiny", "source": "bundled", "digest": digest, "path": folder.join("models/tiny") });
    std::fs::write(&list, json!({ "shared": shared, "models": [model] }).to_string()).unwrap();
    let mut begun = Command::new("unshare");
    begun.args(["--pid", "--fork", "--kill-child", PROGRAM, "admin", "models", "--config", list.as_str()]);
    begun.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn names(folder: &Utf8Path) -> Vec<String> {
    folder.read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect()
}

#[test]
fn concurrent_pods_fill_a_shared_volume_once() {
    let may = Command::new("unshare").args(["--pid", "--fork", "true"]).stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("LEFT OUT: pods that share a volume, because process namespaces need root and `unshare`");
        return;
    }
    let digest = textnlp_models::bundled_digest().unwrap().to_string();
    for round in 0..ROUNDS {
        let place = tempfile::tempdir().unwrap();
        let place = Utf8PathBuf::from_path_buf(place.path().to_owned()).unwrap();
        let shared = place.join("shared");
        let folders: Vec<Utf8PathBuf> = (0..PODS).map(|n| place.join(format!("pod-{n}"))).collect();
        let begun: Vec<Child> = folders.iter().map(|folder| pod(folder, &shared, &digest)).collect();
        for child in begun {
            let said = child.wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success(), "round {round}: {errors}");
        }
        for folder in &folders {
            let there = textnlp_models::verify(&folder.join("models/tiny")).unwrap();
            assert_eq!(there.digest.to_string(), digest);
        }
        assert_eq!(names(&shared.join("models")).len(), 1, "one model, once");
        assert_eq!(names(&shared.join("assembly")), [""; 0], "nothing half is left");
    }
}
