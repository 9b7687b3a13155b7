//! The whole road of `kube-token`: a kubeconfig names our program, a cloud's stand-in hands out a token that the real API server made, and kubectl and
//! our own program are known by it.

use serde_json::json;
use textnlp_cluster::Cluster;
use textnlp_tests::stand_in::{Reply, StandIn};
use textnlp_tests::{Sandbox, program};

use crate::operator::pinned;

#[test]
fn kubectl_and_our_program_sign_in_by_an_exec_kubeconfig() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("token");
    let kubectl = |args: &[&str]| {
        let out = cluster.kubectl(&[args, &["--namespace", &namespace]].concat());
        (out.status.success(), [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
    };
    assert!(kubectl(&["create", "serviceaccount", "operator"]).0);
    let (true, [token, _]) = kubectl(&["create", "token", "operator"]) else { panic!("no token") };
    let who = format!("system:serviceaccount:{namespace}:operator");

    let handed = token.clone();
    let google = StandIn::start(move |_| {
        Reply::Answer(200, json!({ "access_token": handed, "expires_in": 3599, "token_type": "Bearer" }).to_string())
    });
    let sandbox = Sandbox::new("kube-token");
    let path = sandbox.folder().join("kubeconfig");
    let exec = |version: &str| {
        json!({
            "apiVersion": format!("client.authentication.k8s.io/{version}"), "command": program(), "args": ["kube-token", "gcp"],
            "env": [{ "name": "GCE_METADATA_HOST", "value": google.address }, { "name": "HOME", "value": sandbox.folder() }],
            "interactiveMode": "Never", "provideClusterInfo": true,
        })
    };
    for version in ["v1", "v1beta1"] {
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(cluster.admin()).unwrap()).unwrap();
        config["users"][0]["user"] = json!({ "exec": exec(version) });
        std::fs::write(&path, config.to_string()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let (done, said) =
            kubectl(&["auth", "whoami", "--kubeconfig", path.as_str(), "-o", "jsonpath={.status.userInfo.username}"]);
        assert!(done && said[0] == who, "{version}: {said:?}");
    }
    let asked = google.requests().len();
    assert_eq!(asked, 2, "once for each run of kubectl");

    // Our own program: the API server knows it by that token, and says so while it may do nothing yet.
    let site = format!("cluster.namespace={namespace}");
    let image = format!("sites[0].cluster.image={}", pinned("local/textnlp:1"));
    let run = || {
        let mut command = sandbox.command(&[
            "preflight",
            "--env",
            "pilot",
            "--set",
            &site,
            "--set",
            "database.hosting=external",
            "--set",
            "database.url=secret:env:DATABASE_URL",
            "--set",
            &image,
            "--set",
            "sites[0].cluster.address=https://127.0.0.1:1",
            "--set",
            "cache.kind=memory",
            "--set",
            "cache.hosting=null",
            "--set",
            "monitoring.stack=false",
            "--set",
            "backup.enabled=false",
        ]);
        command.env("KUBECONFIG", &path).env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");
        textnlp_tests::said(command.output().unwrap())
    };
    let said = run();
    let told = format!("{}{}", said.out, said.err);
    assert!(said.exit != 0 && told.contains("not allowed to"), "{told}");
    assert!(google.requests().len() > asked && !told.contains(&token), "{told}");
    let binding = [
        "create",
        "clusterrolebinding",
        &format!("of-{namespace}"),
        "--clusterrole=cluster-admin",
        &format!("--serviceaccount={namespace}:operator"),
    ];
    assert!(kubectl(&binding).0);
    let said = run();
    assert!(!format!("{}{}", said.out, said.err).contains("not allowed to"), "{said:?}");
}
