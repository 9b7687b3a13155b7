//! A base for `kubectl apply -k`, to be used with overlays. Secrets come from files that are kept outside of the
//! repository. Kustomize appends the digest of a Secret's content to its name, so a changed secret rolls the pods.

use serde_json::{Value, json};

use super::{ExportFile, SiteObjects, notes, yaml};
use crate::lower::{PULL_SECRET, RECEIVERS_NAME};

pub(super) fn files(site: &SiteObjects, environment: &str) -> Result<Vec<ExportFile>, String> {
    let mut files = Vec::new();
    let mut resources = Vec::new();
    for item in &site.items {
        // The file of a job has no digest in its name, so a change shows as a diff of one file.
        let path = item.file();
        files.push(ExportFile { path: path.clone(), text: yaml(&item.fixed())? });
        resources.push(path);
    }
    let generated: Vec<Value> = site
        .secrets
        .iter()
        .map(|secret| {
            let files: Vec<String> = secret.keys.iter().map(|key| format!("{key}=secrets/{key}")).collect();
            let mut made =
                json!({ "name": secret.name, "namespace": site.namespace, "type": secret.kind, "files": files });
            // CloudNativePG and the Prometheus operator refer to them by name in fields that Kustomize does not rewrite.
            let is_named = ["kubernetes.io/basic-auth", PULL_SECRET].contains(&secret.kind.as_str());
            if is_named || secret.name == RECEIVERS_NAME {
                made["options"] = json!({ "disableNameSuffixHash": true });
            }
            made
        })
        .collect();
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
        "secretGenerator": generated,
    });
    let about = notes::kustomize(site, environment);
    files.push(ExportFile { path: "kustomization.yaml".to_owned(), text: yaml(&kustomization)? });
    files.push(ExportFile { path: "README.md".to_owned(), text: about });
    files.push(ExportFile { path: "secrets/.gitignore".to_owned(), text: "*\n!.gitignore\n".to_owned() });
    Ok(files)
}
