//! One release on its way through the phases of a cluster, as an operator takes it: each environment extends the shipped one, each gate is
//! opened by what was measured, and `promote` brings the release to the next. It is the longest test here, and its name makes it start first.

use std::time::Instant;

use serde_json::Value;
use textnlp_tests::phases::{self, SIGN_ON_SECRET, check, machine_price};
use textnlp_tests::servers::{Server, oidc_at};
use textnlp_tests::{advisories, counts, eventually, in_days, today};

use crate::operator::{Operator, pinned};

/// The phases in their order, each with its environment.
const WALK: [(&str, &str); 4] =
    [("pilot", "first"), ("scale-up", "wide"), ("enterprise", "many"), ("optimized", "best")];
/// All pods share the cores of one machine, so that no number of them is faster than one. How much faster a type of weights is depends on the
/// processor, and on what else runs on it today.
const UNMEASURED: [&str; 1] = ["inference speed-up"];

/// Writes the environments. Returns their namespaces.
fn environments(operator: &Operator, provider: &Server, is_watched: bool) -> [String; WALK.len()] {
    let folder = operator.sandbox.folder().join("environments");
    std::fs::create_dir(&folder).unwrap();
    // The nodes have no metrics of processors and memory, and the cluster neither an Ingress controller, whose firewall it is, nor GPUs.
    let grows = "scaling: { min: 3, max: 5, cpu: null, memory: null, requests_per_second: 1, adapter: true }\n\
                 network: { waf: false }\ngpu: { size: none }\n";
    // Without the definitions of the Prometheus operator no alert reaches a person.
    let compliance = if is_watched { "[gdpr, hipaa, soc2]" } else { "[]" };
    // Seconds in place of the day of pilot, and of the week of optimized.
    let own = [
        "gates: { availability_window: 5s }\n".to_owned(),
        format!("{grows}gates: {{ sessions: 60, compliance: {compliance} }}\n"),
        format!(
            "network: {{ waf: false }}\n{}{}",
            machine_price("main", 100),
            phases::tenant_settings(&provider.address)
        ),
        format!(
            "{grows}gates: {{ sessions: 60, availability_window: 5s, model_load_time: 60s, server_memory: 4GB }}\n{}",
            machine_price("main", 60)
        ),
    ];
    let mut own = own.into_iter();
    WALK.map(|(phase, name)| {
        let namespace = operator.cluster.namespace_name(name);
        let address = operator.cluster.kubelet().forward(&namespace, "textnlp-api", operator.sandbox.port);
        let text = format!(
            "extends: {phase}\nenvironment: {name}\nphase: {phase}\ncluster: {{ namespace: {namespace} }}\n\
             sites:\n  - name: main\n    role: primary\n    provider: kubernetes\n    runtime: kubernetes\n    region: local\n    \
             cluster: {{ address: \"https://{address}\" }}\n{}",
            own.next().unwrap(),
        );
        std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
        namespace
    })
}

#[test]
fn one_release_is_promoted_from_pilot_to_optimized() {
    let Some(mut operator) = Operator::with_nothing("phases") else { return };
    // In config maps, 127.0.0.1 is the address of the pod.
    let Some(provider) = oidc_at(env!("CARGO_MANIFEST_DIR"), "127.0.0.2") else { return };
    let is_watched = operator.receives_alerts();
    operator.sets.retain(|set| !set.starts_with("cluster.namespace") && !set.contains("cluster.address"));
    // What is fast here is another machine's.
    operator.sets.extend(["gates.p95_ms=20000", "server.security.rate_limit=1000000/hour"].map(str::to_owned));
    let fresh = advisories(
        &operator.sandbox.folder().join("fresh"),
        "unrelated",
        "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H",
        &today(),
    );
    operator.sandbox.variables.extend([("TEXTNLP_ADVISORIES", fresh), (SIGN_ON_SECRET.0, SIGN_ON_SECRET.1.to_owned())]);
    let namespaces = environments(&operator, &provider, is_watched);
    let mut released = Value::Null;
    for (index, ((phase, environment), namespace)) in WALK.into_iter().zip(namespaces).enumerate() {
        (operator.environment, operator.namespace, operator.is_promoted) = (environment, namespace, index > 0);
        let began = Instant::now();
        let run = |args: &[&str]| operator.run(args, &[]);
        let run_in = |args: &[&str]| run(&[args, &["-o", "json"]].concat());
        if phase == "scale-up" {
            operator.keeps_another_adapter();
        }
        let up = operator.up(&[]);
        assert_eq!(up["text"].as_str().map(str::is_empty), Some(false), "{up:#}");
        assert_eq!((&up["phase"], &up["from_scratch"]), (&phase.into(), &(index == 0).into()), "{up:#}");
        eprintln!("up of {environment}: {:?} in {} s", counts(&up), up["seconds"]);
        assert_eq!(counts(&operator.up(&[]))[..4], [0, 0, 0, 0], "{environment}: a second up plans nothing");
        match phase {
            "pilot" => {
                let failed_over = run_in(&["db", "failover", "--yes"]).expect(0).json();
                assert_eq!(failed_over["lost"], 0, "{failed_over:#}");
                back_up(&operator);
                run(&["probe", "--every", "1s", "--for", "7s"]).expect(0);
            }
            "scale-up" => {
                back_up(&operator);
                operator.adapter_tells_the_autoscaler();
                waits_for_load(&operator);
                operator.grows(&up);
            }
            "enterprise" => {
                let analyzed = up["outcome"]["done"].to_string().contains("main/server/analytics");
                assert!(analyzed, "{up:#}");
                let scaler = operator.get("horizontalpodautoscaler", "textnlp-api-hpa");
                let bounds = ["minReplicas", "maxReplicas"].map(|bound| scaler["spec"][bound].as_u64());
                assert_eq!(bounds, [Some(3), Some(20)], "as shipped: {scaler:#}");
                eventually("the autoscaler adds pods up to the fewest", || {
                    (operator.get("deployment", "textnlp-api")["status"]["availableReplicas"] == 3).then_some(())
                });
                run(&["baseline", "record", "--only", "cost"]).expect(0);
                // Now, and not at the full hour.
                run(&["analytics", "run"]).expect(0);
            }
            _ => {
                run(&["probe", "--every", "1s", "--for", "7s"]).expect(0);
                operator.grows(&up);
            }
        }
        let waived: &[&str] = if phase == "optimized" { &UNMEASURED } else { &[] };
        let gate = phases::open_gate(&run_in, waived, "all pods run on one machine");
        phases::assert_measured(phase, &gate);
        // The first `up` of all is one, because no release of staging was promoted.
        let exempted = waived.len() + usize::from(index == 0);
        assert_eq!(gate["exemptions"].as_array().map_or(0, Vec::len), exempted, "{gate:#}");
        if ["scale-up", "optimized"].contains(&phase) {
            assert_eq!(check(&gate, "open sessions")["measured"], 60, "{gate:#}");
            let metrics = check(&gate, "metrics");
            assert_eq!((&metrics["measured"], &metrics["limit"]), (&1.into(), &1.into()), "{metrics:#}");
        }
        if phase == "optimized" {
            phases::assert_servers_measured(&gate);
            let later = in_days(60);
            let longer = ["gate", "--waive", UNMEASURED[0], "--until", &later, "--reason", "a test"];
            let longer = run_in(&longer).expect(0).json();
            assert_eq!(check(&longer["gate"], UNMEASURED[0])["waived_until"], later.as_str(), "{longer:#}");
        }
        eprintln!("{phase}: {:.1?}", began.elapsed());
        let history = run(&["state", "history"]).expect(0).out;
        assert_eq!(history.contains(&format!("phase {phase} entered with release")), index > 0, "{history}");
        if let Some((_, next)) = WALK.get(index + 1) {
            released = phases::promote(&run, environment, next, &released);
            assert_eq!(released["images"]["main"], pinned("local/textnlp:1"), "{released:#}");
        }
        if phase == "optimized" {
            // Other advisories would be a reason to measure.
            operator.sandbox.variables.retain(|(name, _)| *name != "TEXTNLP_ADVISORIES");
            let open = operator.run(&["gate", "-o", "json"], &[]).expect(0).json();
            assert_eq!(open["gate"]["reused"], true, "what is open is not measured again: {open:#}");
        }
        operator.run(&["down", "--yes", "--delete-data", environment], &[]).expect(0);
        operator.has_no_adapter();
        eventually("the namespace was ours", || {
            (!operator.cluster.kubectl(&["get", "namespace", &operator.namespace]).status.success()).then_some(())
        });
    }
}

/// Makes a backup, which its job restores and compares, and waits until the cluster tells of it.
fn back_up(operator: &Operator) {
    operator.run(&["backup", "create"], &[]).expect(0);
    eventually("status knows of it", || {
        // It shows drift until the autoscaler's pods are there.
        let status = operator.run(&["status", "-o", "json"], &[]).json();
        status["backup"]["newest_verified"].is_string().then_some(())
    });
}

/// Nobody loads what others work with only to open a gate: it waits, and says how to show what it asks for. All else is measured, the
/// compliance report too.
fn waits_for_load(operator: &Operator) {
    let waits = operator.run(&["gate", "-o", "json"], &[]).expect(3).json();
    let gate = &waits["gate"];
    assert_eq!(gate["state"], "wait", "{waits:#}");
    let blockers = gate["blockers"].to_string();
    assert!(blockers.contains("load --sessions 60") && blockers.contains("load --users 200"), "{blockers}");
    assert!(blockers.contains("p95 of their answers: not measured yet (measured with `open sessions`"), "{blockers}");
    assert_eq!(gate["blockers"].as_array().map(Vec::len), Some(3), "{blockers}");
    assert_eq!(check(gate, "security audit")["measured"], 0, "{waits:#}");
    assert_eq!(check(gate, "compliance report")["measured"], "complete", "{waits:#}");
    // The objects of the cluster are read.
    let audit = operator.run(&["security", "audit", "--full", "-o", "json"], &[]).expect(0).json();
    for (name, says) in [("roles", "role"), ("pods", "container"), ("images", "image"), ("open ports", "service")] {
        let line = audit["lines"].as_array().unwrap().iter().find(|line| line["name"] == name).unwrap();
        let is_read =
            line["state"] == "warning" || line["evidence"].as_str().unwrap().trim_end_matches('s').ends_with(says);
        assert!(is_read && line["site"].is_string(), "{line:#}");
    }
}
