//! A certificate of a public authority: ordered by `up`, renewed by the supervisor. Pebble is the authority.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use camino::Utf8Path;
use textnlp_tests::pebble::pebble;
use textnlp_tests::{Sandbox, eventually};

const NAME: &str = "text.example.com";

fn curl(args: &[&str]) -> Option<String> {
    let out = Command::new("curl").args(["-sS", "--fail", "--max-time", "20"]).args(args).output().unwrap();
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Whether a client that knows only this root is answered at the public name.
fn is_served(sandbox: &Sandbox, root: &Utf8Path) -> bool {
    let (name, url) = (format!("{NAME}:{}:127.0.0.1", sandbox.port), format!("https://{NAME}:{}/health", sandbox.port));
    curl(&["--cacert", root.as_str(), "--resolve", &name, &url]).is_some()
}

#[test]
fn public_certificate_is_ordered_by_up_and_renewed_by_the_supervisor() {
    let mut sandbox = Sandbox::new("acme");
    let folder = sandbox.folder().to_owned();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (api, api_key, root) = (folder.join("api.pem"), folder.join("api-key.pem"), folder.join("root.pem"));
    std::fs::write(&api, made.cert.pem()).unwrap();
    std::fs::write(&api_key, made.signing_key.serialize_pem()).unwrap();
    let Some(authority) = pebble(folder.as_std_path(), sandbox.port, [api.as_std_path(), api_key.as_std_path()]) else {
        return;
    };
    sandbox.variables.extend([
        ("TEXTNLP_SET__tls__mode", "acme".to_owned()),
        ("TEXTNLP_SET__tls__names", format!("[{NAME}]")),
        ("TEXTNLP_SET__tls__email", "ops@example.com".to_owned()),
        ("TEXTNLP_SET__tls__directory", authority.directory.clone()),
        ("TEXTNLP_SET__network__private_ca", api.to_string()),
    ]);
    let run = |args: &[&str]| sandbox.run(&[args, &["--env", "development"]].concat());

    // The name has no address yet: the reason is that of the authority, with what to do.
    let refused = run(&["up", "--yes", "--no-gate"]);
    assert_ne!(refused.exit, 0, "{}", refused.out);
    assert!(refused.err.contains(NAME), "{}", refused.err);
    let file = sandbox.site("development").join("certs/public.pem");
    assert!(!file.exists());
    eventually("the reason is in the status", || {
        let status = run(&["status"]);
        format!("{}{}", status.out, status.err).contains("certs/public.pem").then_some(())
    });

    authority.resolve("127.0.0.1");
    sandbox.up("development");
    std::fs::write(&root, curl(&["--cacert", api.as_str(), &authority.root]).unwrap()).unwrap();
    eventually("clients of the public name are served", || is_served(&sandbox, &root).then_some(()));
    let first = std::fs::read(&file).unwrap();
    // Commands connect to this machine by its address, with the built-in authority.
    run(&["health"]).expect(0);
    assert_eq!(run(&["plan", "--exit-code"]).expect(0).exit, 0);

    // Another key of the account is another account, and the same certificate.
    run(&["secret", "rotate", "acme", "--yes", "--no-gate"]).expect(0);
    assert_eq!(std::fs::read(&file).unwrap(), first);

    // What is lost is ordered again without an operator, and taken up without a restart.
    let gateway = sandbox.pid("gateway.yaml").unwrap();
    std::fs::remove_file(&file).unwrap();
    eventually("there is another one", || std::fs::read(&file).ok().filter(|text| *text != first));
    eventually("clients get it", || is_served(&sandbox, &root).then_some(()));
    assert_eq!(sandbox.pid("gateway.yaml"), Some(gateway));

    run(&["down", "--yes", "--delete-data", "development"]).expect(0);
    let left = sandbox.files(&sandbox.state("development").join("sites"));
    assert!(left.is_empty(), "down left {left:?}");
}
