//! Failover, failback and whole drills against small sites that speak the watches' protocol over real sockets.

mod world;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use textnlp_orchestrator::dr::control_status::ControlStatus;
use textnlp_orchestrator::dr::drill::{self, DrillError, DrillInputs, DrillOptions};
use textnlp_orchestrator::dr::failover::{self, FailoverKind, FailoverRefusal};
use textnlp_orchestrator::dr::fault::FaultKind;
use textnlp_orchestrator::dr::journal::{self, Action, Journal, WHOLE};
use textnlp_orchestrator::dr::ledger;
use textnlp_orchestrator::dr::report::{self, DrillFacts, FailbackTrigger, Report, Targets};
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::gate::phases::{self, PhaseDefinition};
use tokio_util::sync::CancellationToken;
use world::{GRACE_MS, World, lines};

fn order(kind: FaultKind) -> DrillOptions {
    DrillOptions {
        stored_outside: false,
        site: None,
        kind,
        lose_data: false,
        ttl: Duration::from_secs(20),
        automatic: true,
        automatic_failback: true,
        max_lag_ms: 5000,
        targets: Targets { rto_s: 10.0, rpo_s: 1.0 },
        baseline: Duration::from_millis(300),
        hold: Duration::from_millis(300),
        requests_per_second: 50,
        writes_per_second: 20,
        body: json!({ "prompt": "x", "max_tokens": 4 }),
        facts: DrillFacts { environment: "multi".into(), by: "anna".into(), live: true, ..DrillFacts::default() },
    }
}

async fn drill_until(
    world: &World,
    order: &DrillOptions,
    stop_at: &str,
) -> Result<(Report, camino::Utf8PathBuf), DrillError> {
    let stop = CancellationToken::new();
    let tell = |phase: &str, _: &str| {
        if phase == stop_at {
            stop.cancel();
        }
    };
    drill_with(world, order, stop.clone(), &tell).await
}

async fn finish(world: &World) -> Vec<String> {
    let control_clients = world.control_clients();
    let stage = DrillInputs {
        state: &world.state,
        flags: " --env multi",
        control_clients: &control_clients,
        front: Arc::new(world.clone()),
        keys: world,
        faults: world,
        stop: CancellationToken::new(),
        tell: &|_, _| {},
    };
    drill::finish(&stage, "anna").await.unwrap()
}

async fn drill_with(
    world: &World,
    order: &DrillOptions,
    stop: CancellationToken,
    tell: &(dyn Fn(&str, &str) + Send + Sync),
) -> Result<(Report, camino::Utf8PathBuf), DrillError> {
    let control_clients = world.control_clients();
    let stage = DrillInputs {
        state: &world.state,
        flags: " --env multi",
        control_clients: &control_clients,
        front: Arc::new(world.clone()),
        keys: world,
        faults: world,
        stop,
        tell,
    };
    drill::run(&stage, order).await
}

async fn drill(world: &World, order: &DrillOptions) -> (Report, camino::Utf8PathBuf) {
    drill_until(world, order, "never").await.unwrap()
}

fn nothing_is_left(world: &World) {
    assert_eq!(world.drill_keys(), 0);
    world.set(|inner| {
        assert!(inner.faults.is_empty() && inner.keys.is_empty(), "{:?} {:?}", inner.faults, inner.keys);
        assert_eq!(inner.primary, "one");
    });
    assert!(journal::unfinished(&journal::read(&world.state).unwrap()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_replaces_a_killed_primary_restores_it_and_cleans_up() {
    let world = World::new();
    let (report, folder) = drill(&world, &order(FaultKind::Kill)).await;
    assert_eq!(report.missed, [] as [String; 0]);
    assert_eq!(report.leftovers, [] as [String; 0]);
    let found = &report.figures.findings;
    assert_eq!((found.lost, found.unaccounted, found.failed.after_shift), (0, 0, 0));
    assert!(found.failed.during > 0, "requests failed while the front still sent them to the dead site");
    assert!(
        report.rto_s().unwrap() >= GRACE_MS as f64 / 1000.0 * 0.9,
        "nobody takes over before the grace: {:?}",
        report.rto_s()
    );
    assert_eq!(report.figures.failback, FailbackTrigger::Automatic);
    let names: Vec<&str> = report.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "baseline",
            "fault",
            "detection",
            "fencing",
            "promotion",
            "shift",
            "hold",
            "reading",
            "revert",
            "recovery",
            "failback"
        ]
    );
    nothing_is_left(&world);
    assert_eq!(ledger::read(&folder.join("ledger.jsonl")).unwrap().len() + 1, lines(&folder.join("ledger.jsonl")));

    let key = report::signing_key(&world.state).unwrap();
    let page = report.write(&folder, &key).unwrap();
    let public = report::public_key(&world.state).unwrap();
    assert!(report::verify(&page, &public).unwrap().starts_with(&format!("textnlp drill {} of multi", report.id)));
    report::verify(&folder.join("report.json"), &public).unwrap();
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(!html.contains("http://") && !html.contains("https://"), "the page needs nothing from elsewhere");
    std::fs::write(&page, html.replace("targets met", "targets  met")).unwrap();
    assert!(report::verify(&page, &public).unwrap_err().to_string().contains("does not fit"));
    let (reports, unread) = report::history(&world.state);
    assert_eq!((reports, unread), (vec![report], vec![]));
    let file = folder.join("report.json");
    let signed = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, signed.replacen('{', "{ ", 1)).unwrap();
    let (reports, unread) = report::history(&world.state);
    assert!(reports.is_empty() && unread.len() == 1, "it is not as it was signed: {unread:?}");
    if let Ok(copy) = std::env::var("DRILL_REPORT") {
        std::fs::write(copy, html).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_that_cannot_be_injected_is_refused_before_any_change() {
    let world = World::new();
    let Err(DrillError::NotReady(wrong)) = drill_until(&world, &order(FaultKind::DiskFull), "never").await else {
        panic!("it has to be refused");
    };
    assert!(wrong.len() == 1 && wrong[0].contains("same filesystem"), "{wrong:?}");
    assert_eq!(journal::read(&world.state).unwrap(), []);
    assert!(!world.state.join("dr/drills").exists());
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_measurement_before_the_fault_is_repeated_and_named() {
    let world = World::new();
    let tell = |phase: &str, says: &str| {
        // Until the first measurement is over.
        if phase == "baseline" {
            world.set(|inner| inner.refuses = !says.ends_with("it is measured again"));
        }
    };
    let (report, _) = drill_with(&world, &order(FaultKind::Kill), CancellationToken::new(), &tell).await.unwrap();
    let baseline = report.phases.iter().find(|phase| phase.name == "baseline").unwrap();
    assert!(baseline.says.contains("none failed; measurement "), "{}", baseline.says);
    assert!(report.figures.findings.failed.before_fault > 0, "the report counts what failed");
    assert_eq!(report.missed, [] as [String; 0]);
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_that_fails_in_every_measurement_gets_no_fault() {
    let world = World::new();
    let tell = |phase: &str, _: &str| world.set(|inner| inner.refuses |= phase == "baseline");
    let refused = drill_with(&world, &order(FaultKind::Kill), CancellationToken::new(), &tell).await.unwrap_err();
    let why = refused.to_string();
    assert!(why.contains("measured 3 times: 0 requests answered") && why.ends_with("no fault was injected"), "{why}");
    assert_eq!(world.set(|inner| inner.epoch), 3, "no site was lost");
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_acknowledged_writes_are_counted_and_miss_the_target() {
    let world = World::new();
    world.set(|inner| inner.lossy = true);
    let (report, _) = drill(&world, &order(FaultKind::Kill)).await;
    assert!(report.figures.findings.lost > 0);
    assert!(report.missed.iter().any(|missed| missed.contains("acknowledged writes are lost")), "{:?}", report.missed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_verifies_that_the_new_primary_has_a_writable_database() {
    for (says, missed) in
        [("primary", None), ("unavailable", Some("the database of the current primary is unavailable"))]
    {
        let world = World::new();
        world.set(|inner| inner.database = Some(says));
        let (report, folder) = drill(&world, &order(FaultKind::Kill)).await;
        assert_eq!(report.figures.database.map(|role| role.to_string()).as_deref(), Some(says));
        assert!(
            report
                .phases
                .iter()
                .any(|phase| phase.name == "database" && phase.says.contains("the database that two uses"))
        );
        let (found, wanted) = (report.missed.join("; "), missed.unwrap_or_default());
        assert!(found.starts_with(wanted) && found.is_empty() == wanted.is_empty(), "{found}");
        let page = std::fs::read_to_string(report.write(&folder, &report::signing_key(&world.state).unwrap()).unwrap());
        let page = page.unwrap();
        assert!(page.contains("role of the database of the current primary"));
        // The gate of the phase has the same names.
        let gate = PhaseDefinition::of(Phase::MultiRegion);
        for name in [phases::RTO, phases::RPO, phases::LOST] {
            assert!(page.contains(name) && gate.check(name).is_some(), "{name}");
        }
        let warnings = ControlStatus::take(&world.control_clients()).await.warnings(5000).join("; ");
        assert_eq!(
            warnings.contains("the servers of two cannot connect to their database"),
            missed.is_some(),
            "{warnings}"
        );
        nothing_is_left(&world);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manual_drill_claims_and_hands_over_itself() {
    let world = World::new();
    world.set(|inner| (inner.automatic, inner.automatic_failback) = (false, false));
    let order = DrillOptions { automatic: false, automatic_failback: false, ..order(FaultKind::Freeze) };
    let (report, _) = drill(&world, &order).await;
    assert_eq!((report.missed.as_slice(), report.figures.failback.as_str()), (&[] as &[String], "drill"));
    assert!(world.set(|inner| inner.asked.iter().any(|asked| asked == "two POST /v1/claim")));
    assert!(world.set(|inner| inner.asked.iter().any(|asked| asked == "two POST /v1/handover")));
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_can_fail_a_site_other_than_the_primary() {
    let world = World::new();
    let (report, _) = drill(&world, &DrillOptions { site: Some("two".into()), ..order(FaultKind::Kill) }).await;
    assert_eq!((report.missed.as_slice(), report.figures.failback.as_str()), (&[] as &[String], "not needed"));
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_without_failover_misses_its_targets_and_ends() {
    let world = World::new();
    world.set(|inner| inner.never_promotes = true);
    let (report, _) = drill(&world, &DrillOptions { ttl: Duration::from_secs(4), ..order(FaultKind::Kill) }).await;
    assert!(
        report.missed.iter().any(|missed| missed.contains("control data could not be written")),
        "{:?}",
        report.missed
    );
    assert_eq!((report.rto_s(), report.figures.failback.as_str()), (None, "not needed"));
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_drill_is_finished_without_another_one() {
    let world = World::new();
    killed_drill(&world).await;
    assert_eq!(finish(&world).await, ["dead"]);
    nothing_is_left(&world);
    assert_eq!(finish(&world).await, [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_drill_reverts_its_fault_and_the_next_one_completes_it() {
    let world = World::new();
    let stopped = drill_until(&world, &order(FaultKind::Kill), "shift").await;
    assert!(matches!(stopped, Err(DrillError::Stopped(_))), "{stopped:?}");
    assert!(
        world.set(|inner| inner.faults.is_empty() && inner.keys.is_empty()),
        "the fault was taken back before it left"
    );
    let (report, _) = drill(&world, &order(FaultKind::Kill)).await;
    assert_eq!(report.missed, [] as [String; 0]);
    nothing_is_left(&world);
    assert_eq!(report::history(&world.state).0.len(), 0, "reports are written by whoever asked");
}

/// What a drill leaves whose process was killed after its fault.
async fn killed_drill(world: &World) {
    let fault = textnlp_orchestrator::dr::fault::Fault {
        id: "dead".into(),
        site: "one".into(),
        kind: FaultKind::Kill,
        until: jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60),
        lose_data: false,
    };
    let mut journal = Journal::open(&world.state, "bert", "").unwrap();
    journal.begin(Action::Drill, "dead", WHOLE, None, json!({ "fault": fault })).unwrap();
    journal.begin(Action::Drill, "dead", "key", None, json!({ "public_id": "drill dead" })).unwrap();
    drop(journal);
    world.set(|inner| inner.keys.insert("drill dead".to_owned()));
    textnlp_orchestrator::dr::fault::Faults::inject(world, &fault).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_drill_completes_one_whose_process_was_killed() {
    let world = World::new();
    killed_drill(&world).await;
    let (report, _) = drill(&world, &order(FaultKind::Kill)).await;
    assert_eq!(report.missed, [] as [String; 0]);
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_is_injected_while_a_site_is_unhealthy() {
    let world = World::new();
    world.lose("three", Some(FaultKind::Kill));
    let refused = drill_until(&world, &order(FaultKind::Kill), "never").await.unwrap_err();
    assert!(refused.to_string().contains("the site agent of three cannot be reached"), "{refused}");
    assert!(world.set(|inner| inner.keys.is_empty()));
    assert_eq!(journal::read(&world.state).unwrap().len(), 0);
    let unknown =
        drill_until(&World::new(), &DrillOptions { site: Some("four".into()), ..order(FaultKind::Kill) }, "never")
            .await;
    assert!(unknown.unwrap_err().to_string().contains("there is no site `four`; the sites are one, two, three"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_failover_hands_over_and_fails_back() {
    let world = World::new();
    world.set(|inner| inner.automatic_failback = false);
    let control_clients = world.control_clients();
    let mut journal = Journal::open(&world.state, "anna", " --env multi").unwrap();
    let shifted = failover::failover(&control_clients, &mut journal, "two").await.unwrap();
    assert_eq!((shifted.way, shifted.from.as_str(), shifted.epoch), (FailoverKind::Handover, "one", 4));
    let again = failover::failover(&control_clients, &mut journal, "two").await.unwrap();
    assert_eq!(again.way, FailoverKind::Already);
    let back = failover::failback(&control_clients, &mut journal, Duration::from_secs(5), &|_| {}).await.unwrap();
    assert_eq!((back.way, back.to.as_str()), (FailoverKind::Handover, "one"));
    let undo: Vec<_> = journal.records().iter().filter_map(|record| record.undo.clone()).collect();
    assert_eq!(
        undo,
        ["textnlp-deploy dr failover --to one --env multi", "textnlp-deploy dr failover --to two --env multi"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planned_failover_is_held_until_a_failback() {
    let world = World::new();
    let control_clients = world.control_clients();
    let mut journal = Journal::open(&world.state, "anna", " --env multi").unwrap();
    let shifted = failover::failover(&control_clients, &mut journal, "two").await.unwrap();
    assert!(shifted.held && ControlStatus::take(&control_clients).await.held());
    world.set(|inner| inner.witness_gone = true);
    assert!(ControlStatus::take(&control_clients).await.held(), "the sites know it too");
    world.set(|inner| inner.witness_gone = false);
    let again = failover::failover(&control_clients, &mut journal, "two").await.unwrap();
    assert_eq!((again.way, again.held), (FailoverKind::Already, true));
    let back = failover::failback(&control_clients, &mut journal, Duration::from_secs(5), &|_| {}).await.unwrap();
    assert!(!back.held && !ControlStatus::take(&control_clients).await.held());
    let asked = world.set(|inner| inner.asked.clone());
    let handovers: Vec<_> = asked.iter().filter(|asked| asked.contains("/v1/handover")).collect();
    assert_eq!(handovers, ["one POST /v1/handover?hold=true", "two POST /v1/handover"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_primary_is_replaced_by_a_claim_after_its_grace_period() {
    let world = World::new();
    world.set(|inner| (inner.automatic, inner.grace_ms) = (false, 60_000));
    let control_clients = world.control_clients();
    let mut journal = Journal::open(&world.state, "anna", " --env multi").unwrap();
    // What another process began and never ended is ended with it.
    journal.begin(Action::Failover, "old", WHOLE, None, json!({ "to": "two" })).unwrap();
    world.lose("one", Some(FaultKind::Kill));
    let refused = failover::failover(&control_clients, &mut journal, "two").await.unwrap_err();
    assert!(matches!(refused, FailoverRefusal::Grace { left_ms, .. } if left_ms <= 60_000), "{refused}");
    assert!(refused.to_string().contains("ms are left"), "{refused}");
    world.set(|inner| inner.grace_ms = 0);
    let shifted = failover::failover(&control_clients, &mut journal, "two").await.unwrap();
    assert_eq!((shifted.way, shifted.finished.as_deref()), (FailoverKind::Claim, Some("old")));
    assert!(journal::unfinished(journal.records()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_refusals_state_the_reason() {
    let world = World::new();
    world.set(|inner| (inner.automatic, inner.automatic_failback) = (false, false));
    let control_clients = world.control_clients();
    let mut journal = Journal::open(&world.state, "anna", " --env multi").unwrap();
    let mut check = async |to: &str, says: &str| {
        let refused = failover::failover(&control_clients, &mut journal, to).await.unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    };
    check("four", "there is no site `four`; the sites are one, two, three").await;
    world.set(|inner| inner.members = vec!["one".into(), "two".into()]);
    world.lose("three", None);
    check("three", "three is not a member of epoch 3").await;
    world.lose("two", Some(FaultKind::Kill));
    check("two", "two cannot become primary: the site agent of two cannot be reached").await;
    world.lose("two", Some(FaultKind::Freeze));
    check("two", "the site agent of two does not answer within 2000 ms").await;
    world.lose("two", None);
    world.set(|inner| inner.witness_gone = true);
    check("two", "the witness cannot be reached").await;
    let control_status = ControlStatus::take(&control_clients).await;
    assert_eq!(
        control_status.primary().as_deref(),
        Some("one"),
        "the sites tell who is primary when the witness does not"
    );
    assert!(
        control_status.warnings(5000)[0].contains("no site can become primary until it is back"),
        "{:?}",
        control_status.warnings(5000)
    );
}
