//! A company's network: an authority of its own, models that are reached by a proxy alone, and a database that speaks TLS.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use textnlp_tests::ports::Ports;
use textnlp_tests::{counts, eventually};

use crate::operator::{Operator, pinned, postgres};

/// An authority, and the certificate that it gave to both servers.
const CERTIFICATES: &str = r#"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=company -keyout ca.key -out ca.pem
openssl req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr
printf 'subjectAltName=DNS:localhost,DNS:models.example.com\n' >server.ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem
"#;

/// Models over HTTPS and the proxy by which they are reached.
struct Models {
    program: Child,
    port: u16,
    log: Utf8PathBuf,
}

impl Models {
    fn serve(files: &Utf8Path, folder: &str) -> Self {
        let log = files.join("asked");
        let mut program = Command::new("python3");
        program.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/company.py"));
        program.args([folder, files.join("server.pem").as_str(), files.join("server.key").as_str(), log.as_str()]);
        let mut program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { program, port: port.trim().parse().unwrap(), log }
    }
}

impl Drop for Models {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn pods_trust_a_private_ca_and_fetch_models_through_a_proxy() {
    let Some(mut operator) = Operator::new("company") else { return };
    let files = operator.cluster.folder().join(format!("{}-company", operator.namespace));
    std::fs::create_dir(&files).unwrap();
    let made = Command::new("sh").current_dir(&files).args(["-euc", CERTIFICATES]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let held = Ports::ask(1);
    let port = held.numbers()[0];
    let database = postgres::Cluster::start(&format!("listen_addresses = '127.0.0.1'\nport = {port}"));
    let read = |name: &str| std::fs::read_to_string(files.join(name)).unwrap();
    database.begin_tls(&read("server.pem"), &read("server.key"));
    let name = database.database();
    operator.url = format!("postgresql://textnlp@localhost:{port}/{name}?sslmode=verify-full");

    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/models/bundled");
    let models = Models::serve(&files, folder);
    let pulled = ["model", "pull", &format!("file:{folder}/textnlp-tiny"), "-o", "json"];
    let digest = operator.sandbox.run(&pulled).expect(0).json()["model"]["digest"].clone();
    let model = json!([{
        "name": "textnlp-tiny", "source": "https://models.example.com/textnlp-tiny/", "digest": digest, "role": "default",
        "quantize": "q8_0", "context": 1024, "preload": true,
    }]);
    let asks = format!("{} -X -q -A -t \"$DATABASE_URL\" -c 'select 40 + 2'", Operator::psql().display());
    let (private_ca, proxy) = (format!("network.private_ca={files}/ca.pem"), "network.proxy.https=http://127.0.0.1:");
    let sets = [
        private_ca,
        format!("{proxy}{}", models.port),
        format!("models={model}"),
        format!("sites[0].cluster.analytics.image={}", pinned("local/analytics:1")),
        "sites[0].cluster.analytics.schedule=0 0 1 1 *".to_owned(),
        format!("sites[0].cluster.analytics.command={}", json!(["sh", "-c", asks])),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();

    let wrong = ["network.private_ca=/etc/hosts", "network.proxy.https=secret:env:PATH"];
    let said = operator.run(&["plan"], &[wrong[1]]).expect(2).err;
    assert!(said.contains("network.proxy.https") && said.contains("from a secret is not supported in pods"), "{said}");
    let said = operator.run(&["plan"], &[wrong[0]]).expect(2).err;
    assert!(said.contains("network.private_ca") && said.contains("no certificates in PEM form"), "{said}");

    let done = operator.up(&sets);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    assert!(std::fs::read_to_string(&models.log).unwrap().contains("models.example.com:443"), "by the proxy");
    let encrypted = "SELECT count(*) > 0 FROM pg_stat_ssl WHERE ssl AND pid <> pg_backend_pid()";
    assert_eq!(database.sql("postgres", encrypted), "t");
    assert_eq!(counts(&operator.up(&sets))[..4], [0, 0, 0, 0], "a second up plans nothing");
    let said = operator.run(&["key", "list"], &sets).expect(0).out;
    assert!(said.contains("first"), "a job beside the servers reaches the database as they do: {said}");

    let namespace = operator.namespace.as_str();
    let job = ["create", "job", "once", "--from=cronjob/analytics-processor", "-n", namespace];
    assert!(operator.cluster.kubectl(&job).status.success());
    eventually("the operator's job ends", || (operator.get("job", "once")["status"]["succeeded"] == 1).then_some(()));
    let said = operator.cluster.kubectl(&["logs", "job/once", "-n", namespace]);
    assert_eq!(String::from_utf8(said.stdout).unwrap().trim(), "42");
    operator.run(&["down", "--yes"], &sets).expect(0);
}
