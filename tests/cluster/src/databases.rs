//! A fake CloudNativePG: each `Cluster` object becomes a real PostgreSQL with TLS, a Secret with its certificate
//! authority, and a service name that pods can use. It also provisions volumes: each claim gets a folder.
//!
//! It has no replicas: the status reports as many as wanted, and each has a pod without a process. If the pod of the
//! primary is deleted, the server is killed and starts again on the same files, as a replica without lag would, under
//! the name of the next instance.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use camino::Utf8PathBuf;
use serde_json::{Value, json};

use crate::Cluster;
use crate::api::Api;

const GROUP: &str = "postgresql.cnpg.io";
const EVERY: Duration = Duration::from_millis(200);
/// The annotation with who creates and deletes a volume, and that name: the controllers leave such a volume to it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const DRIVER: &str = "folders.textnlp.test";
/// The uid of PostgreSQL in images.
const POSTGRES: u32 = 26;

/// `$1` is the folder of programs, `$2` the data folder, `$3` the listen address.
const RUN: &str = r#"
set -e
"$1/initdb" -D "$2/data" -U postgres -A trust -E UTF8 --locale=C --no-sync >"$2/log" 2>&1
printf '%s\n' "local all all trust" "hostssl all all all scram-sha-256" >"$2/data/pg_hba.conf"
printf '%s\n' "unix_socket_directories = '$2'" "listen_addresses = '$3'" "port = 5432" "fsync = off" "ssl = on" \
  "ssl_cert_file = '$2/tls.crt'" "ssl_key_file = '$2/tls.key'" "max_connections = 300" >>"$2/data/postgresql.conf"
exec "$1/postgres" -D "$2/data" >>"$2/log" 2>&1
"#;
/// The same on existing files. It is refused while processes of the killed server still end.
const RUN_AGAIN: &str = r#"
for _ in $(seq 300); do "$1/postgres" -D "$2/data" >>"$2/log" 2>&1; sleep 0.1; done
"#;

/// The server of one object.
struct Running {
    process: u32,
    folder: Utf8PathBuf,
    is_ready: bool,
    /// The number of the primary, once the instances have pods.
    primary: Option<u64>,
    /// The version of the Secret whose password the role has.
    password: String,
}

/// The Secret of the role that owns the database.
struct OwnerSecret {
    version: String,
    password: String,
    /// Whether a change of it is noticed.
    is_reloaded: bool,
}

/// Starts the controller of databases and volumes. `programs` is PostgreSQL's folder; `user` is the uid and gid to run
/// as if the tests run as root.
pub(crate) fn start(cluster: &'static Cluster, programs: PathBuf, user: Option<(u32, u32)>) {
    // A PostgreSQL that does not run as root needs to traverse the folder.
    let open = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(cluster.folder(), open).expect("open the cluster's folder");
    if let Some(user) = user {
        cluster.kubelet().put_user(POSTGRES, user);
    }
    define(cluster);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("start a runtime").block_on(async {
            let (api, mut running) = (cluster.api(), BTreeMap::new());
            let databases = Databases { cluster, api, programs, user };
            loop {
                databases.look(&mut running).await;
                give_volumes(&databases.api, cluster).await;
                tokio::time::sleep(EVERY).await;
            }
        });
    });
}

/// Adds the kind, as an installation of CloudNativePG does. If its definition is not available, it adds one that
/// accepts any field.
fn define(cluster: &Cluster) {
    if cluster.define("cloudnative-pg") {
        return;
    }
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let version = json!({
        "name": "v1", "served": true, "storage": true, "subresources": { "status": {} }, "schema": { "openAPIV3Schema": schema },
    });
    let names = json!({ "kind": "Cluster", "listKind": "ClusterList", "plural": "clusters", "singular": "cluster" });
    cluster.feed(
        &["apply"],
        &json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("clusters.{GROUP}") },
            "spec": { "group": GROUP, "scope": "Namespaced", "names": names, "versions": [version] },
        }),
    );
    let wait = ["wait", "--for=condition=Established", "--timeout=60s", &format!("crd/clusters.{GROUP}")];
    assert!(cluster.kubectl(&wait).status.success(), "the kind is not served");
}

struct Databases {
    cluster: &'static Cluster,
    api: Api,
    programs: PathBuf,
    user: Option<(u32, u32)>,
}

impl Databases {
    async fn look(&self, running: &mut BTreeMap<String, Running>) {
        let Ok(listed) = self.api.call("GET", &format!("/apis/{GROUP}/v1/clusters"), None).await else { return };
        let Some(objects) = listed.body["items"].as_array().filter(|_| listed.status == 200) else { return };
        let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let gone: Vec<String> =
            running.keys().filter(|known| objects.iter().all(|object| uid(object) != **known)).cloned().collect();
        for one in gone {
            if let Some(gone) = running.remove(&one) {
                self.cluster.keeper.end(gone.process);
                let _ = std::fs::remove_dir_all(gone.folder);
            }
        }
        for object in objects {
            if !running.contains_key(&uid(object))
                && let Some(begun) = self.begin(object).await
            {
                running.insert(uid(object), begun);
            }
            if let Some(one) = running.get_mut(&uid(object)).filter(|one| !one.is_ready) {
                one.is_ready = self.finish(object, &one.folder).await;
            } else if let Some(one) = running.get_mut(&uid(object)) {
                self.keep_instances(object, one).await;
                self.keep_password(object, one).await;
            }
        }
    }

    /// Gives each instance its pod, and fails over if that of the primary is gone.
    async fn keep_instances(&self, object: &Value, one: &mut Running) {
        let (namespace, name) = crate::kubelet::names(object);
        let Some(instances) = object["spec"]["instances"].as_u64() else { return };
        if object["metadata"]["deletionTimestamp"].is_string() {
            return;
        }
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let primary = match one.primary {
            Some(primary) if self.api.get(&format!("{pods}/{name}-{primary}")).await.is_some() => return,
            Some(primary) => {
                self.report(object, primary, instances - 1).await;
                self.cluster.keeper.end(one.process);
                one.process = self.spawn(RUN_AGAIN, &one.folder, "");
                let mut ping = self.psql(&one.folder);
                ping.args(["-c", "SELECT 1"]);
                while !ping.output().is_ok_and(|said| said.status.success()) {
                    tokio::time::sleep(EVERY).await;
                }
                primary % instances + 1
            }
            None => 1,
        };
        one.primary = Some(primary);
        for number in 1..=instances {
            let pod = self.pod(object, namespace, &format!("{name}-{number}"));
            // One that is there already is a conflict.
            let _ = self.api.call("POST", &pods, Some(&pod)).await;
        }
        self.report(object, primary, instances).await;
    }

    /// Reports the version of a changed Secret with the label, and at the next look sets its password: CloudNativePG's operator
    /// does the first, and the manager of the primary then the second
    /// (<https://cloudnative-pg.io/documentation/current/labels_annotations/>, report cloudnative-pg/cloudnative-pg#2658).
    async fn keep_password(&self, object: &Value, one: &mut Running) {
        let (namespace, name) = crate::kubelet::names(object);
        let Some(secret) = self.owner_secret(object).await else { return };
        let read = &object["status"]["secretsResourceVersion"]["applicationSecretVersion"];
        if *read == secret.version && one.password != secret.version {
            let owner = object["spec"]["bootstrap"]["initdb"]["owner"].as_str().unwrap_or_default();
            let password = secret.password.replace('\'', "''");
            let mut psql = self.psql(&one.folder);
            psql.args(["-c", &format!("ALTER ROLE \"{owner}\" PASSWORD '{password}'")]);
            if psql.output().is_ok_and(|said| said.status.success()) {
                one.password = secret.version;
            }
        } else if *read != secret.version && secret.is_reloaded {
            let version = json!({ "applicationSecretVersion": secret.version });
            let status = json!({ "status": { "secretsResourceVersion": version } });
            let path = format!("/apis/{GROUP}/v1/namespaces/{namespace}/clusters/{name}/status");
            let _ = self.api.call("PATCH", &path, Some(&status)).await;
        }
    }

    async fn owner_secret(&self, object: &Value) -> Option<OwnerSecret> {
        let (namespace, _) = crate::kubelet::names(object);
        let first = &object["spec"]["bootstrap"]["initdb"];
        let name = first["secret"]["name"].as_str().unwrap_or_default();
        let secret = self.api.get(&format!("/api/v1/namespaces/{namespace}/secrets/{name}")).await?;
        let value = |key: &str| {
            let text = base64::engine::general_purpose::STANDARD.decode(secret["data"][key].as_str()?).ok()?;
            String::from_utf8(text).ok()
        };
        let (user, password) = (value("username")?, value("password")?);
        // CloudNativePG rejects the Secret of another role, too.
        assert_eq!(first["owner"], user, "the secret is of another role");
        Some(OwnerSecret {
            version: secret["metadata"]["resourceVersion"].as_str()?.to_owned(),
            password,
            is_reloaded: secret["metadata"]["labels"]["cnpg.io/reload"] == "true",
        })
    }

    /// The pod of an instance. No scheduler has this name, so nothing runs it.
    fn pod(&self, object: &Value, namespace: &str, name: &str) -> Value {
        let cluster = &object["metadata"]["name"];
        let owner = json!([{
            "apiVersion": format!("{GROUP}/v1"), "kind": "Cluster", "name": cluster, "uid": object["metadata"]["uid"],
            "controller": true, "blockOwnerDeletion": true,
        }]);
        let labels = json!({ "cnpg.io/cluster": cluster });
        let metadata = json!({ "name": name, "namespace": namespace, "labels": labels, "ownerReferences": owner });
        // As the restricted profile of a namespace requires.
        let security = json!({
            "runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        });
        let container = json!({ "name": "postgres", "image": "local/postgres:1", "securityContext": security });
        let spec = json!({ "schedulerName": "no-scheduler", "containers": [container] });
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    }

    async fn report(&self, object: &Value, primary: u64, ready: u64) {
        let (namespace, name) = crate::kubelet::names(object);
        let status = json!({ "status": { "readyInstances": ready, "currentPrimary": format!("{name}-{primary}") } });
        let path = format!("/apis/{GROUP}/v1/namespaces/{namespace}/clusters/{name}/status");
        let _ = self.api.call("PATCH", &path, Some(&status)).await;
    }

    /// Starts a server.
    fn spawn(&self, script: &str, folder: &Utf8PathBuf, address: &str) -> u32 {
        let mut run = Command::new("sh");
        run.args(["-c", script, "sh"]).arg(&self.programs).args([folder.as_str(), address]).current_dir("/");
        run.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((user, group)) = self.user {
            run.uid(user).gid(group);
        }
        self.cluster.keeper.spawn(&mut run)
    }

    fn psql(&self, folder: &Utf8PathBuf) -> Command {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", folder.as_str(), "-d", "postgres"]);
        psql
    }

    /// Starts the server of an object.
    async fn begin(&self, object: &Value) -> Option<Running> {
        let (namespace, name) = crate::kubelet::names(object);
        let folder = self.cluster.folder().join("databases").join(object["metadata"]["uid"].as_str()?);
        std::fs::create_dir_all(&folder).ok()?;
        let address = self.cluster.kubelet().new_address();
        let (certificate, key) = self.cluster.authority.server(&[&address.to_string()]);
        for (file, text) in [("tls.crt", certificate), ("tls.key", key)] {
            std::fs::write(folder.join(file), text).ok()?;
            std::fs::set_permissions(folder.join(file), std::fs::Permissions::from_mode(0o600)).ok()?;
            self.give(&folder.join(file));
        }
        self.give(&folder);
        let process = self.spawn(RUN, &folder, &address.to_string());
        // The host name that pods use.
        self.cluster.kubelet().put_name(namespace, &format!("{name}-rw"), address);
        Some(Running { process, folder, is_ready: false, primary: None, password: String::new() })
    }

    fn give(&self, place: &Utf8PathBuf) {
        if let Some((user, group)) = self.user {
            std::os::unix::fs::chown(place, Some(user), Some(group)).expect("give a file to PostgreSQL");
        }
    }

    /// Creates the role and the database once the server accepts connections, and reports it as ready.
    async fn finish(&self, object: &Value, folder: &Utf8PathBuf) -> bool {
        let (namespace, name) = crate::kubelet::names(object);
        let first = &object["spec"]["bootstrap"]["initdb"];
        let (Some(owner), Some(database)) = (first["owner"].as_str(), first["database"].as_str()) else { return false };
        let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
        let Some(OwnerSecret { version, password, .. }) = self.owner_secret(object).await else { return false };
        let mut psql = self.psql(folder);
        psql.args(["-c", &format!("CREATE ROLE \"{owner}\" LOGIN PASSWORD '{}'", password.replace('\'', "''"))]);
        let statements = |field: &str| {
            let listed = first[field].as_array().into_iter().flatten().filter_map(Value::as_str);
            listed.flat_map(|statement| ["-c".to_owned(), statement.to_owned()]).collect::<Vec<_>>()
        };
        psql.args(statements("postInitSQL"));
        psql.args(["-c", &format!("CREATE DATABASE \"{database}\" OWNER \"{owner}\"")]);
        psql.args(["-c", &format!("\\connect \"{database}\"")]).args(statements("postInitApplicationSQL"));
        if !psql.output().is_ok_and(|said| said.status.success()) {
            return false;
        }
        let owner = json!([{ "apiVersion": format!("{GROUP}/v1"), "kind": "Cluster", "name": name, "uid": object["metadata"]["uid"] }]);
        let authority = base64::engine::general_purpose::STANDARD.encode(self.cluster.ca_pem());
        let metadata = json!({ "name": format!("{name}-ca"), "namespace": namespace, "ownerReferences": owner });
        // CloudNativePG stores the key there, too.
        let data = json!({ "ca.crt": authority, "ca.key": authority });
        let made = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data });
        let _ = self.api.call("POST", &secrets, Some(&made)).await;
        let instances = &object["spec"]["instances"];
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "ClusterIsReady", "message": "Cluster is Ready",
            "lastTransitionTime": k8s_openapi::jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
        });
        let status = json!({ "status": {
            "instances": instances, "readyInstances": instances, "currentPrimary": format!("{name}-1"), "conditions": [ready],
            "secretsResourceVersion": { "applicationSecretVersion": version },
        } });
        let path = format!("/apis/{GROUP}/v1/namespaces/{namespace}/clusters/{name}/status");
        self.api.call("PATCH", &path, Some(&status)).await.is_ok_and(|answer| answer.status < 300)
    }
}

/// Provisions a local folder for every claim without a volume, and deletes the volumes of claims that are gone.
async fn give_volumes(api: &Api, cluster: &Cluster) {
    let Ok(listed) = api.call("GET", "/api/v1/persistentvolumeclaims", None).await else { return };
    for claim in listed.body["items"].as_array().into_iter().flatten() {
        if claim["status"]["phase"] != "Pending" || claim["spec"]["volumeName"].is_string() {
            continue;
        }
        let (namespace, name) = crate::kubelet::names(claim);
        let uid = claim["metadata"]["uid"].as_str().unwrap_or_default();
        let folder = cluster.folder().join("claims").join(uid);
        let _ = std::fs::create_dir_all(&folder);
        let volume = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": { "name": format!("pvc-{uid}"), "annotations": { (PROVISIONED_BY): DRIVER } },
            "spec": {
                "persistentVolumeReclaimPolicy": "Delete",
                "capacity": { "storage": claim["spec"]["resources"]["requests"]["storage"] },
                "accessModes": claim["spec"]["accessModes"],
                "hostPath": { "path": folder },
                "claimRef": { "namespace": namespace, "name": name, "uid": uid },
            },
        });
        let _ = api.call("POST", "/api/v1/persistentvolumes", Some(&volume)).await;
    }
    let Ok(listed) = api.call("GET", "/api/v1/persistentvolumes", None).await else { return };
    for volume in listed.body["items"].as_array().into_iter().flatten() {
        let is_released =
            volume["status"]["phase"] == "Released" && volume["metadata"]["annotations"][PROVISIONED_BY] == DRIVER;
        if let Some(name) = volume["metadata"]["name"].as_str().filter(|_| is_released) {
            let _ = api.call("DELETE", &format!("/api/v1/persistentvolumes/{name}"), None).await;
        }
    }
}

/// Host names within namespaces, and their addresses.
pub(crate) type Names = BTreeMap<(String, String), Ipv4Addr>;
