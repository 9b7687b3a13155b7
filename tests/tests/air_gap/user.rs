//! Root installs a site that another user runs.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::stage::{Goods, NAME, Stage, names};

/// A user of every Debian machine.
const USER: &str = "nobody";

fn uid() -> u32 {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("nobody:")).unwrap();
    line.split(':').nth(2).unwrap().parse().unwrap()
}

/// No process of the site runs as root, and only the state belongs to its user.
#[track_caller]
fn runs_as_its_user(stage: &Stage) {
    let processes = stage.sandbox.processes();
    for word in ["supervise", "serve", " gateway --config"] {
        assert!(processes.iter().any(|(_, line)| line.contains(word)), "no {word} in {processes:?}");
    }
    for (pid, line) in processes {
        // It may have ended.
        let Ok(process) = std::fs::metadata(format!("/proc/{pid}")) else { continue };
        assert_eq!(process.uid(), uid(), "{line}");
    }
    for file in stage.sandbox.files(stage.root()) {
        // The supervisor may have replaced it.
        let Ok(found) = std::fs::symlink_metadata(stage.root().join(&file)) else { continue };
        assert_eq!(found.uid(), if file.starts_with(".textnlp/") { uid() } else { 0 }, "{file}");
    }
    for folder in ["environments", "bin", "current/"] {
        let found = std::fs::metadata(stage.root().join(folder)).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o022), (0, 0), "{folder}");
    }
    stage.is_well();
}

#[test]
fn site_of_root_runs_as_another_user_through_updates() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can install for another user");
        return;
    }
    let goods = Goods::get();
    let install = |stage: &Stage, more: &[&str]| {
        let settings = stage.settings();
        let flags: Vec<&str> = settings.iter().map(String::as_str).chain(["--trust", goods.public.as_str()]).collect();
        stage.run(&[&["bundle", "install", goods.first.as_str()], &flags[..], more].concat())
    };

    let closed = Stage::new("closed");
    std::fs::set_permissions(closed.sandbox.folder(), std::fs::Permissions::from_mode(0o700)).unwrap();
    for (more, user) in [(vec![], "textnlp"), (vec!["--user", USER], USER)] {
        let refused = install(&closed, &more).expect(1);
        names(&refused.err, &[&format!("the user `{user}` cannot enter /"), "--root DIR", "--user root"]);
        closed.is_untouched(user);
    }
    let stage = Stage::open("textnlp-site");
    let unknown = install(&stage, &["--user", "no-such-user"]).expect(1);
    names(&unknown.err, &["this machine has no user `no-such-user`"]);
    let looked = install(&stage, &["--preflight", "-o", "json"]).expect(0).json();
    let is_there = std::fs::read_to_string("/etc/passwd").unwrap().lines().any(|line| line.starts_with("textnlp:"));
    assert_eq!((&looked["user"], &looked["creates_user"]), (&json!("textnlp"), &json!(!is_there)), "{looked:#}");
    stage.is_untouched("preflight");

    let installed = install(&stage, &["--user", USER]).expect(0);
    names(&installed.out, &["user       nobody"]);
    let own = stage.root().join(format!("environments/{NAME}.yaml"));
    names(&std::fs::read_to_string(&own).unwrap(), &["user: nobody"]);
    runs_as_its_user(&stage);
    let other = install(&stage, &["--user", "root"]).expect(4);
    names(&other.err, &["not as `root`", "omit --user"]);

    let step = goods.step(&stage, &goods.first, &goods.second, &[]);
    stage.update(&[&step], &["--trust", &goods.public]).expect(0);
    runs_as_its_user(&stage);
    stage.run(&["bundle", "update", "rollback", "--root", stage.root().as_str(), "--yes"]).expect(0);
    runs_as_its_user(&stage);
    stage.down();
}

#[test]
fn declined_user_is_a_warning_and_recorded() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can decline another user");
        return;
    }
    let goods = Goods::get();
    let stage = Stage::new("declined");
    let installed = stage.install(&goods.first, &["--no-up", "--trust", &goods.public]).expect(0);
    names(&installed.err, &["warning: ", "will run as root"]);
    names(&installed.out, &["user       root"]);
    let own = std::fs::read_to_string(stage.root().join(format!("environments/{NAME}.yaml"))).unwrap();
    names(&own, &["user: root"]);
    // Without the flag, the record decides.
    let settings = stage.settings();
    let flags: Vec<&str> = settings.iter().map(String::as_str).chain(["--no-up"]).collect();
    let again = stage.run(&[&["bundle", "install", goods.first.as_str()], &flags[..]].concat()).expect(0);
    names(&again.err, &["will run as root"]);
}
