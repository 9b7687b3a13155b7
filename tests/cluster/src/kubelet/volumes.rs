//! The environment of a pod: variables, and folders with its config maps and secrets.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use base64::Engine;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::container::expand;
use super::{Shared, pod};

/// The folders of a pod, and the documents behind its variables.
pub(super) struct Places {
    folder: Utf8PathBuf,
    address: Ipv4Addr,
    volumes: BTreeMap<String, Utf8PathBuf>,
    maps: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    names: BTreeMap<String, String>,
    pod: Value,
}

const MAP: &str = "configmaps";
const SECRET: &str = "secrets";

/// Creates the folders of a pod; an error names what is missing.
pub(super) async fn prepare(shared: &Shared, object: &Value, address: Ipv4Addr) -> Result<Places, String> {
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    let mut places = Places {
        folder: shared.folder.join(uid),
        address,
        volumes: BTreeMap::new(),
        maps: BTreeMap::new(),
        names: shared.names(pod::names(object).0),
        pod: object.clone(),
    };
    let failed = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(&places.folder).map_err(failed)?;
    let spec = &object["spec"];
    let containers = ["initContainers", "containers"].into_iter().flat_map(|field| spec[field].as_array()).flatten();
    for container in containers {
        let single = container["env"].as_array().into_iter().flatten().map(|one| &one["valueFrom"]);
        for (from, plural) in single.flat_map(|from| [(&from["configMapKeyRef"], MAP), (&from["secretKeyRef"], SECRET)])
        {
            places.fetch(shared, plural, from).await?;
        }
        for from in container["envFrom"].as_array().into_iter().flatten() {
            places.fetch(shared, MAP, &from["configMapRef"]).await?;
            places.fetch(shared, SECRET, &from["secretRef"]).await?;
        }
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let name = volume["name"].as_str().unwrap_or_default();
        // The claim of an ephemeral volume is named after the pod and the volume.
        let own = volume["ephemeral"].is_object().then(|| format!("{}-{name}", pod::names(object).1));
        let claim = volume["persistentVolumeClaim"]["claimName"].as_str().or(own.as_deref());
        let image = volume["image"]["reference"].as_str();
        let folder = match (volume["hostPath"]["path"].as_str(), claim, image) {
            (Some(path), ..) => Utf8PathBuf::from(path),
            (None, Some(claim), _) => claimed(shared, object, claim).await?,
            // An image volume is a local folder that the test registered.
            (None, None, Some(image)) => match shared.program(image, "/") {
                root if root == "/" => return Err(format!("failed to pull image \"{image}\": not found")),
                folder => folder,
            },
            (None, None, None) => places.folder.join("volumes").join(name),
        };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        // The volume belongs to the pod's group, as with `fsGroup`.
        if let Some((user, group)) = shared.user(object) {
            std::os::unix::fs::chown(&folder, Some(user), Some(group)).map_err(failed)?;
        }
        places.volumes.insert(name.to_owned(), folder.clone());
        for (field, key, plural) in [("configMap", "name", MAP), ("secret", "secretName", SECRET)] {
            let Some(source) = volume[field][key].as_str() else { continue };
            places.fetch_named(shared, plural, source, volume[field]["optional"] == true).await?;
            let documents = places.maps.get(&format!("{plural}/{source}")).cloned().unwrap_or_default();
            let items = volume[field]["items"].as_array();
            for (key, bytes) in documents {
                let path = match items {
                    None => key.clone(),
                    Some(items) => match items.iter().find(|item| item["key"] == key.as_str()) {
                        Some(item) => item["path"].as_str().unwrap_or_default().to_owned(),
                        None => continue,
                    },
                };
                std::fs::write(folder.join(path), bytes).map_err(failed)?;
            }
        }
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        places.project(shared, volume).await?;
    }
    places.rewrite_maps(spec).map_err(failed)?;
    Ok(places)
}

/// The folder of a claim.
async fn claimed(shared: &Shared, pod: &Value, claim: &str) -> Result<Utf8PathBuf, String> {
    let (namespace, _) = pod::names(pod);
    let claim = shared.api.get(&format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")).await;
    let claim = claim.ok_or("persistentvolumeclaim not found")?;
    let volume = claim["spec"]["volumeName"].as_str().ok_or("the claim has no volume yet")?;
    let volume =
        shared.api.get(&format!("/api/v1/persistentvolumes/{volume}")).await.ok_or("the volume is not found")?;
    volume["spec"]["hostPath"]["path"]
        .as_str()
        .map(Utf8PathBuf::from)
        .ok_or_else(|| "the volume has no path".to_owned())
}

impl Places {
    pub(super) fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Replaces mount paths and service names in a text by their local values.
    pub(super) fn put(&self, container: &Value, text: &str) -> String {
        let mut words = self.mounts([container]);
        words.extend(self.names());
        rewritten(text, &words)
    }

    fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names.iter().map(|(name, address)| (name.as_str(), address.as_str()))
    }

    /// The local folders of mounts, by mount path.
    fn mounts<'a>(&'a self, containers: impl IntoIterator<Item = &'a Value>) -> BTreeMap<&'a str, &'a str> {
        let mounts = containers.into_iter().flat_map(|one| one["volumeMounts"].as_array()).flatten();
        mounts
            .filter_map(|one| Some((one["mountPath"].as_str()?, self.volumes.get(one["name"].as_str()?)?.as_str())))
            .collect()
    }

    /// The variables of a container, in order.
    pub(super) fn variables(&self, container: &Value) -> Result<Vec<(String, String)>, String> {
        let mut found: Vec<(String, String)> = Vec::new();
        for from in container["envFrom"].as_array().into_iter().flatten() {
            for (plural, reference) in [(MAP, &from["configMapRef"]), (SECRET, &from["secretRef"])] {
                let Some(name) = reference["name"].as_str() else { continue };
                for (key, bytes) in self.maps.get(&format!("{plural}/{name}")).into_iter().flatten() {
                    found.push((key.clone(), String::from_utf8_lossy(bytes).into_owned()));
                }
            }
        }
        for one in container["env"].as_array().into_iter().flatten() {
            let name = one["name"].as_str().unwrap_or_default().to_owned();
            let from = &one["valueFrom"];
            let value = if let Some(field) = from["fieldRef"]["fieldPath"].as_str() {
                self.field(field)
            } else if let Some(value) = one["value"].as_str() {
                expand(value, &found)
            } else {
                let (plural, reference) = match from.get("secretKeyRef") {
                    Some(reference) => (SECRET, reference),
                    None => (MAP, &from["configMapKeyRef"]),
                };
                let (source, key) = (reference["name"].as_str(), reference["key"].as_str());
                let document = self.maps.get(&format!("{plural}/{}", source.unwrap_or_default()));
                match document.and_then(|document| document.get(key.unwrap_or_default())) {
                    Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    None if reference["optional"] == true || from.is_null() => String::new(),
                    None => {
                        return Err(format!(
                            "couldn't find key {} in {plural} {}",
                            key.unwrap_or_default(),
                            source.unwrap_or_default()
                        ));
                    }
                }
            };
            found.push((name, value));
        }
        Ok(found)
    }

    fn field(&self, path: &str) -> String {
        match path {
            "status.podIP" => self.address.to_string(),
            "spec.nodeName" => super::NODE.to_owned(),
            path if path.starts_with("metadata.annotations['") => {
                let name = path.trim_start_matches("metadata.annotations['").trim_end_matches("']");
                self.pod["metadata"]["annotations"][name].as_str().unwrap_or_default().to_owned()
            }
            _ => {
                let (namespace, name) = pod::names(&self.pod);
                match path {
                    "metadata.name" => name.to_owned(),
                    "metadata.namespace" => namespace.to_owned(),
                    "metadata.uid" => self.pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
                    _ => String::new(),
                }
            }
        }
    }

    /// Writes the files of a projected volume: pod fields and the service account's credential.
    async fn project(&self, shared: &Shared, volume: &Value) -> Result<(), String> {
        let Some(folder) = self.volumes.get(volume["name"].as_str().unwrap_or_default()) else { return Ok(()) };
        let failed = |error: std::io::Error| error.to_string();
        for item in volume["downwardAPI"]["items"].as_array().into_iter().flatten() {
            let (path, field) = (item["path"].as_str(), item["fieldRef"]["fieldPath"].as_str());
            let (Some(path), Some(field)) = (path, field) else {
                return Err("only fields are projected here".to_owned());
            };
            std::fs::write(folder.join(path), self.field(field)).map_err(failed)?;
        }
        let (namespace, _) = pod::names(&self.pod);
        for source in volume["projected"]["sources"].as_array().into_iter().flatten() {
            if let Some(path) = source["serviceAccountToken"]["path"].as_str() {
                let account = self.pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
                let url = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
                let asked = serde_json::json!({ "spec": { "expirationSeconds": 3600 } });
                let answer = shared.api.call("POST", &url, Some(&asked)).await.map_err(|error| error.to_string())?;
                let token = answer.body["status"]["token"].as_str().ok_or("the account gets no token")?;
                std::fs::write(folder.join(path), token).map_err(failed)?;
            }
            if let Some(name) = source["configMap"]["name"].as_str() {
                let map = shared.api.get(&format!("/api/v1/namespaces/{namespace}/configmaps/{name}")).await;
                let map = map.ok_or_else(|| format!("configmap \"{name}\" not found"))?;
                for (key, text) in map["data"].as_object().into_iter().flatten() {
                    std::fs::write(folder.join(key), text.as_str().unwrap_or_default()).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    async fn fetch(&mut self, shared: &Shared, plural: &str, reference: &Value) -> Result<(), String> {
        match reference["name"].as_str() {
            Some(name) => self.fetch_named(shared, plural, name, reference["optional"] == true).await,
            None => Ok(()),
        }
    }

    async fn fetch_named(&mut self, shared: &Shared, plural: &str, name: &str, optional: bool) -> Result<(), String> {
        let (namespace, _) = pod::names(&self.pod);
        let path = format!("/api/v1/namespaces/{namespace}/{plural}/{name}");
        let answer = shared.api.call("GET", &path, None).await.map_err(|error| error.to_string())?;
        let mut documents = BTreeMap::new();
        if answer.status == 200 {
            for (key, value) in answer.body["data"].as_object().into_iter().flatten() {
                let text = value.as_str().unwrap_or_default();
                let bytes = match plural {
                    SECRET => base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default(),
                    _ => text.as_bytes().to_vec(),
                };
                documents.insert(key.clone(), bytes);
            }
        } else if !optional {
            return Err(format!("{} \"{name}\" not found", plural.trim_end_matches('s')));
        }
        self.maps.insert(format!("{plural}/{name}"), documents);
        Ok(())
    }

    /// Replaces mount paths and pod addresses in config maps, and in pod annotations mounted as files, by their local
    /// values.
    fn rewrite_maps(&self, spec: &Value) -> std::io::Result<()> {
        let containers =
            ["initContainers", "containers"].into_iter().flat_map(|field| spec[field].as_array()).flatten();
        let mut words = self.mounts(containers);
        let address = self.address.to_string();
        words.extend(self.names());
        words.extend([("0.0.0.0", address.as_str()), ("127.0.0.1", address.as_str())]);
        let maps = spec["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|volume| volume["configMap"].is_object() || volume["downwardAPI"].is_object());
        for folder in maps.filter_map(|volume| self.volumes.get(volume["name"].as_str()?)) {
            for entry in
                folder.read_dir_utf8()?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            {
                let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
                std::fs::write(entry.path(), rewritten(&text, &words))?;
            }
        }
        Ok(())
    }
}

/// Replaces whole words and paths in one pass; a replacement is not scanned again. Longer matches take precedence. A
/// match followed by a letter, a digit, a hyphen or an underscore is part of a longer word.
fn rewritten(text: &str, words: &BTreeMap<&str, &str>) -> String {
    let mut longest: Vec<_> = words.iter().collect();
    longest.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
    let (mut written, mut rest) = (String::with_capacity(text.len()), text);
    let goes_on = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    while let Some(first) = rest.chars().next() {
        let found = longest.iter().find_map(|(word, by)| {
            let after = rest.strip_prefix(**word)?;
            let begins = !goes_on(first) || !written.ends_with(goes_on);
            (begins && !after.starts_with(goes_on)).then_some((after, **by))
        });
        match found {
            Some((after, by)) => {
                written.push_str(by);
                rest = after;
            }
            None => {
                written.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_paths_and_addresses_are_rewritten_as_whole_words() {
        let words = BTreeMap::from([
            ("/etc/a", "/tmp/1/a"),
            ("/etc/a-b", "/tmp/1/b"),
            ("/tmp", "/tmp/1/tmp"),
            ("0.0.0.0", "127.1.2.3"),
        ]);
        for (text, expect) in [
            ("x: /etc/a/f", "x: /tmp/1/a/f"),
            ("/etc/a-b/f", "/tmp/1/b/f"),
            ("/etc/a-bc", "/etc/a-bc"),
            ("\"/tmp\"", "\"/tmp/1/tmp\""),
            ("/tmpx", "/tmpx"),
            ("0.0.0.0:8080", "127.1.2.3:8080"),
            ("10.0.0.0", "10.0.0.0"),
        ] {
            assert_eq!(rewritten(text, &words), expect);
        }
    }
}
