//! The same environment on this machine and in a cluster of one's own, as on the clouds.

use textnlp_tests::{Said, said};

use crate::{of_staging, whole_life};

#[test]
fn a_site_is_made_in_an_empty_cluster_answers_and_is_removed_with_everything() {
    let Some(mut operator) = of_staging("kubernetes") else { return };
    operator.sets.push("data=disposable".to_owned());
    let namespace = || {
        let found = operator.cluster.kubectl(&["get", "namespace", &operator.namespace]).status.success();
        found.then(|| operator.namespace.clone())
    };
    let run = |args: &[&str], more: &[&str]| operator.run(&[args, &["--provider", "kubernetes"]].concat(), more);
    whole_life(run, || namespace().into_iter().collect(), || no_bucket(run), || {});
}

#[test]
fn a_site_is_made_on_this_machine_answers_and_is_removed_with_everything() {
    let Some(mut operator) = of_staging("onprem") else { return };
    operator.sets.retain(|set| !set.contains("cluster.") && !set.starts_with("network."));
    let sets = ["data=disposable", "cluster.min_nodes=1", "prerequisites.allow_below_minimum=true"];
    operator.sets.extend(sets.map(str::to_owned));
    // Root names the user of an environment with production users.
    operator.sets.extend(rustix::process::geteuid().is_root().then(|| "prerequisites.user=root".to_owned()));
    let run = |args: &[&str], more: &[&str]| {
        let mut command = operator.command(&[args, &["--provider", "onprem"]].concat(), more);
        said(command.env_remove("KUBECONFIG").output().unwrap())
    };
    let left = || -> Vec<String> { operator.sandbox.processes().into_iter().map(|(_, command)| command).collect() };
    whole_life(run, left, || no_bucket(run), || {});
}

/// Only sites of clouds have a bucket for models.
fn no_bucket(run: impl Fn(&[&str], &[&str]) -> Said) {
    let refused = run(&["model", "push", "bundled"], &[]);
    assert!(refused.exit != 0 && refused.err.contains("no site of staging has a bucket"), "{refused:?}");
}
