//! Killed at any moment, the same command again arrives at the same end.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use textnlp_tests::{Dice, Sandbox, eventually, promptly, said, seeds, signal};

use crate::stage::{Goods, NAME, Stage};

/// How many kills a story has: a dozen, or as many as are asked for.
fn kills(usual: u64) -> u64 {
    std::env::var("TEXTNLP_TESTS_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(usual)
}

/// Kills a command at a random time within `longest`; half the time with everything that it has started in the foreground.
/// Returns whether it was still running. If not, `longest` becomes its duration, because a run on a busy machine takes
/// longer than the next one.
fn killed(mut command: Command, dice: &mut Dice, longest: &mut Duration) -> bool {
    let most = u64::try_from(longest.as_micros()).expect("a short time").max(1000);
    let started = Instant::now();
    let until = started + Duration::from_micros(dice.below(most));
    let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let alive = loop {
        if child.try_wait().unwrap().is_some() {
            break false;
        }
        if Instant::now() > until {
            break true;
        }
        std::thread::park_timeout(Duration::from_micros(200));
    };
    let everything = dice.below(2) == 0;
    if !alive {
        *longest = started.elapsed();
        return false;
    }
    if everything {
        let group = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    } else {
        signal(child.id(), rustix::process::Signal::KILL);
    }
    child.wait().unwrap();
    alive
}

/// How long the command takes when nobody disturbs it.
fn undisturbed(mut command: Command) -> Duration {
    let begun = Instant::now();
    said(command.output().unwrap()).expect(0);
    begun.elapsed()
}

fn leftovers(sandbox: &Sandbox, folder: &camino::Utf8Path) -> Vec<String> {
    let begun = |name: &String| name.starts_with('.') && name != ".lock" && !name.starts_with(".textnlp");
    sandbox.files(folder).into_iter().filter(begun).collect()
}

#[test]
fn killed_create_ends_with_the_same_bytes() {
    let stage = Stage::new("killed-create");
    let create = |out: &str, more: &[&str]| {
        stage.command(&[&["bundle", "create", "--env", NAME, "--no-server-image", "--out", out], more].concat())
    };
    let volumes = ["--volume-size", "20MB"];
    let mut longest = undisturbed(create("whole.tar", &[]));
    undisturbed(create("whole-parts.tar", &volumes));
    let (mut dice, mut alive) = (Dice(seeds::first_seed()), 0);
    for n in 0..kills(8) {
        let (out, more) = if n % 2 == 0 { ("again.tar", &[][..]) } else { ("again-parts.tar", &volumes[..]) };
        alive += u64::from(killed(create(out, more), &mut dice, &mut longest));
        // What has its final name is whole, whenever one looks.
        if stage.made().join(out).exists() {
            stage.run(&["bundle", "verify", out]).expect(0);
        }
    }
    assert!(alive > 0, "nothing was killed");
    said(create("again.tar", &[]).output().unwrap()).expect(0);
    said(create("again-parts.tar", &volumes).output().unwrap()).expect(0);
    let made = |name: &str| std::fs::read(stage.made().join(name)).unwrap();
    assert!(made("whole.tar") == made("again.tar"), "killed and made again, the bytes are others");
    for part in [".001", ".002", ".003"] {
        assert!(made(&format!("whole-parts.tar{part}")) == made(&format!("again-parts.tar{part}")), "{part}");
    }
    let left: Vec<_> = stage.sandbox.files(&stage.made()).into_iter().filter(|f| f.contains(".partial")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Runs it until it is done; a part of a killed run that is still at work is waited for.
#[track_caller]
fn arrives(stage: &Stage, args: &[String]) {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    eventually("nobody else is at work", || {
        let done = stage.run(&args);
        let locked = done.exit == 4 && done.err.contains("error: ");
        (!locked).then(|| done.expect(0))
    });
}

/// What a process has started and not yet seen the end of.
fn children(of: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{of}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

#[test]
fn killed_install_ends_its_child_processes() {
    let goods = Goods::get();
    let stage = Stage::new("killed-alone");
    let args = stage.install_args(&goods.first, &["--trust", &goods.public]);
    let command = || stage.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let words =
        |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
    let mut install = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let up = promptly("`up` runs", || {
        assert!(install.try_wait().unwrap().is_none(), "it ended before it could be killed");
        children(install.id()).into_iter().find(|child| words(*child).contains(" up "))
    });
    // Standing still, it cannot come to its end by itself.
    signal(up, rustix::process::Signal::STOP);
    signal(install.id(), rustix::process::Signal::KILL);
    install.wait().unwrap();
    // A process that was killed has no command line any more, even before it is gone.
    eventually("`up` is gone", || words(up).is_empty().then_some(()));
    said(command().output().unwrap()).expect(0);
    stage.is_well();
    stage.down();
}

#[test]
fn killed_install_ends_with_the_same_site() {
    let goods = Goods::get();
    let mut stage = Stage::new("killed-install");
    let args = stage.install_args(&goods.first, &["--trust", &goods.public]);
    let command = |stage: &Stage, args: &[String]| stage.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let longest = undisturbed(command(&stage, &args));
    let (digest, files) = (stage.digest(), stage.sandbox.files(&stage.root().join("current")));
    stage.is_well();
    stage.down();

    let (mut dice, mut alive) = (Dice(seeds::first_seed()), 0);
    for life in 0..3 {
        let mut longest = longest;
        stage.at_root(&format!("root-{life}"));
        let args = stage.install_args(&goods.first, &["--trust", &goods.public]);
        for _ in 0..kills(12).div_ceil(3) {
            alive += u64::from(killed(command(&stage, &args), &mut dice, &mut longest));
            if let Some(found) = stage.digest() {
                assert_eq!(Some(found), digest, "something else is in use");
            }
        }
        arrives(&stage, &args);
        assert_eq!(
            (stage.digest(), stage.sandbox.files(&stage.root().join("current"))),
            (digest.clone(), files.clone())
        );
        assert_eq!(leftovers(&stage.sandbox, stage.root()), Vec::<String>::new());
        stage.is_well();
        stage.down();
    }
    assert!(alive > 0, "nothing was killed");
}

#[test]
fn killed_update_ends_with_the_same_site_while_serving() {
    let goods = Goods::get();
    let stage = Stage::new("killed-update");
    stage.install(&goods.first, &["--trust", &goods.public]).expect(0);
    let there = goods.step(&stage, &goods.first, &goods.second, &[]);
    let back = goods.step(&stage, &goods.second, &goods.first, &[]);
    let args = |step: &String| -> Vec<String> {
        let root = stage.root().as_str();
        // One of the two goes back to the older bundle.
        ["bundle", "update", "apply", step, "--trust", &goods.public, "--downgrade", "--yes", "--root", root]
            .map(str::to_owned)
            .into()
    };
    let command = |args: &[String]| stage.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let longest = undisturbed(command(&args(&there)));
    let second = stage.digest();
    arrives(&stage, &args(&back));
    let first = stage.digest();
    let (mut dice, mut alive) = (Dice(seeds::first_seed()), 0);
    for _ in 0..kills(12).div_ceil(4) {
        for (step, digest) in [(&there, &second), (&back, &first)] {
            let mut longest = longest;
            for _ in 0..2 {
                alive += u64::from(killed(command(&args(step)), &mut dice, &mut longest));
                let found = stage.digest();
                assert!(found == first || found == second, "{found:?} is neither the one nor the other");
            }
            arrives(&stage, &args(step));
            assert_eq!(stage.digest(), *digest);
            stage.is_well();
        }
    }
    assert!(alive > 0, "nothing was killed");
    assert_eq!(leftovers(&stage.sandbox, stage.root()), Vec::<String>::new());
    stage.down();
}
