//! The cable is pulled: a network with nothing in it but itself, and every call that a process makes to anywhere is read afterwards.

use std::collections::BTreeSet;

use textnlp_tests::{eventually, said};

use crate::stage::{Goods, Stage, advisories, lacking, names, tool};

/// The address in a traced call that is not on this machine.
fn elsewhere(line: &str) -> Option<String> {
    let family = line.split("sa_family=").nth(1)?.split([',', '}']).next()?;
    let home = match family {
        "AF_UNIX" | "AF_NETLINK" | "AF_UNSPEC" => true,
        "AF_INET" => line.contains("inet_addr(\"127."),
        "AF_INET6" => line.contains("\"::1\"") || line.contains("\"::ffff:127."),
        _ => false,
    };
    (!home).then(|| line.to_owned())
}

#[test]
fn external_network_calls_are_distinguished_from_local_ones() {
    for home in [
        r#"12 connect(9, {sa_family=AF_UNIX, sun_path="/run/a.sock"}, 110) = 0"#,
        r#"12 connect(9, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0"#,
        r#"12 connect(9, {sa_family=AF_INET6, sin6_port=htons(80), inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = 0"#,
        r#"12 sendto(9, "abc", 3, MSG_NOSIGNAL, NULL, 0) = 3"#,
    ] {
        assert_eq!(elsewhere(home), None);
    }
    for away in [
        r#"12 connect(9, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("9.9.9.9")}, 16) = -1 ENETUNREACH"#,
        r#"12 sendto(9, "a", 1, 0, {sa_family=AF_INET6, inet_pton(AF_INET6, "2620:fe::fe", &sin6_addr)}, 28) = -1"#,
    ] {
        assert!(elsewhere(away).is_some(), "{away}");
    }
}

#[test]
fn offline_install_and_update_make_no_external_connection() {
    let (strace, ip) = (tool("strace"), tool("ip"));
    let goods = Goods::get();
    let stage = Stage::new("cable");
    let alone = || stage.other("unshare", &["-n", "true"]).output().is_ok_and(|o| o.status.success());
    if !strace || !ip || !alone() && !lacking("the right to have a network of one's own") {
        return;
    }
    let advisories =
        advisories(&stage, "advisories", "a-crate-that-nobody-has", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H");
    let create = [
        "bundle",
        "create",
        "--env",
        "air-gapped",
        "--no-server-image",
        "--advisories",
        &advisories,
        "--sign-key",
        &goods.secret,
    ];
    let (one, two) = (stage.made().join("one.tar"), stage.made().join("two.tar"));
    stage.run(&[&create[..], &["--out", one.as_str()]].concat()).expect(0);
    let model = format!("models[0].source=file:{}", crate::stage::other_model(&stage, one.as_str()));
    let program = crate::stage::other_program(&stage);
    stage
        .run(&[&create[..], &["--out", two.as_str(), "--set", &model, "--program", program.as_str()]].concat())
        .expect(0);
    let step = goods.step(&stage, one.as_str(), two.as_str(), &[]);

    // Everything beyond the border is one shell in a network of its own; what it starts is traced to its end.
    let log = stage.sandbox.folder().join("calls");
    let script = r#"
        set -eu
        ! "$PROGRAM" bundle install "$ONE" --trust "$KEY" "$@" --preflight 2> "$LOG.without-loopback" || exit 9
        ip link set lo up
        test -z "$(ip route show table all | grep -v 'dev lo' || true)"
        traced() { name=$1; shift; strace -D -f -qq -e trace=connect,sendto,sendmsg,sendmmsg -s 8 -o "$LOG.$name" "$@"; }
        traced install "$PROGRAM" bundle install "$ONE" --trust "$KEY" "$@" --output json > "$LOG.install.json"
        there="$ROOT/bin/textnlp-deploy"
        cd "$ROOT"
        "$there" generate 'Once upon a time' --max-tokens 4 --no-stream > "$LOG.before"
        traced update "$there" bundle update apply "$STEP" --trust "$KEY" --root "$ROOT" --yes --output json > "$LOG.update.json"
        "$there" generate 'Once upon a time' --max-tokens 4 --no-stream > "$LOG.after"
        traced again "$there" gate --env air-gapped --again --output json > "$LOG.again.json"
        "$there" down --env air-gapped --yes --delete-data air-gapped
    "#;
    let mut shell = stage.other("unshare", &["-n", "sh", "-c", script, "sh"]);
    shell.args(stage.flags()).envs([
        ("LOG", log.as_str()),
        ("PROGRAM", textnlp_tests::program().as_str()),
        ("ONE", one.as_str()),
        ("STEP", &step),
        ("KEY", &goods.public),
        ("ROOT", stage.root().as_str()),
    ]);
    let done = said(shell.output().unwrap());
    let read = |name: &str| std::fs::read_to_string(format!("{log}.{name}")).unwrap_or_default();
    assert_eq!(done.exit, 0, "{}\n{}\n{}\n{}", done.out, done.err, read("install.json"), read("update.json"));
    names(&read("without-loopback"), &["its loopback interface is down", "`ip link set lo up`"]);
    eventually("nobody is traced any more", || stage.sandbox.processes().is_empty().then_some(()));
    for name in ["install.json", "update.json", "again.json"] {
        names(&read(name), &["\"state\": \"open\"", "connections to elsewhere"]);
    }
    assert!(!read("before").trim().is_empty() && !read("after").trim().is_empty());
    for name in ["install", "update", "again"] {
        let calls = read(name);
        let away: Vec<_> = calls.lines().filter_map(elsewhere).collect();
        assert!(away.is_empty(), "{name} calls others: {away:#?}");
        let who: BTreeSet<_> = calls.lines().filter_map(|line| line.split_whitespace().next()).collect();
        // The gate finds the processes of the service by their locks, and asks the supervisor nothing.
        let (enough, asks) = if name == "again" { (1, false) } else { (3, true) };
        let is_asked = calls.contains("AF_UNIX") || !asks;
        let seen = is_asked && calls.contains("inet_addr(\"127.0.0.1\")") && who.len() >= enough;
        assert!(seen, "too little was seen of {name}:\n{calls}");
        eprintln!("{name}: {} calls of {} threads, all at home", calls.lines().count(), who.len());
    }
}
