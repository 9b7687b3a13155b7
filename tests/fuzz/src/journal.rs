//! Journals of a state: as stored, and with sums that fit, so that the records behind them are read too.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::state::{Entry, MemoryStore, Operator, SiteLocation, State, check};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{EnvironmentName, Lineage, ResourceId, SiteName};

/// The first byte of inputs whose lines get their sums here.
const WITHOUT_SUMS: u8 = b'+';

struct Valid {
    runtime: tokio::runtime::Runtime,
    lineage: Vec<u8>,
    log: Vec<u8>,
}

fn names() -> (EnvironmentName, SiteName) {
    (EnvironmentName::new("fuzz").unwrap(), SiteName::new("here").unwrap())
}

fn valid() -> &'static Valid {
    static VALID: OnceLock<Valid> = OnceLock::new();
    VALID.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (environment, site) = names();
        let store = MemoryStore::default();
        let place = SiteLocation {
            provider: "onprem".into(),
            account: "machine".into(),
            region: "local".into(),
            runtime: Runtime::Process,
        };
        let operator = Operator {
            by: "fuzz".into(),
            reason: Some("why".into()),
            tool: "fuzz 1".into(),
            host: "here".into(),
            pid: 1,
        };
        runtime.block_on(async {
            let state =
                State::load(Arc::new(store.clone()), &environment, Lineage(uuid::Uuid::new_v4())).await.unwrap();
            let places = BTreeMap::from([(site.clone(), place)]);
            let mut locked = state.lock(&operator, &places, Arc::new(SystemClock)).await.unwrap();
            let resource = ResourceId::new("here/a").unwrap();
            let entry = Entry::Forgot { resource, because: "it is gone".into() };
            locked.commit(&site, |writer| writer.entry(entry)).await.unwrap();
            locked.close().await.unwrap();
        });
        let lineage = store.raw_document("lineage.json").unwrap();
        Valid { runtime, lineage, log: store.raw_log(&site) }
    })
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let log = valid().log.clone();
    // A line is `SUM JSON`.
    let lines = String::from_utf8(log.clone()).unwrap();
    let bare: String = lines.lines().map(|line| format!("{}\n", line.split_once(' ').unwrap().1)).collect();
    let more = r#"{"n":3,"at":"2026-11-20T10:00:00Z","by":"a","tool":"t","fence":1,"entry":"begun","op":"here-1","verb":"create","resource":"here/a","kind":"onprem.file","target":"current","intent":{"sha256":"00","at":0,"len":9}}"#;
    vec![log, format!("+{bare}").into_bytes(), format!("+{bare}{more}\n").into_bytes()]
}

pub(crate) fn run(bytes: &[u8]) -> bool {
    let valid = valid();
    let (environment, site) = names();
    let store = MemoryStore::default();
    store.set_raw_document("lineage.json", Some(valid.lineage.clone()));
    let log = match bytes.split_first() {
        Some((&WITHOUT_SUMS, lines)) => with_sums(lines),
        _ => bytes.to_vec(),
    };
    store.set_raw_log(&site, log);
    valid.runtime.block_on(async {
        let mut is_valid = false;
        if let Ok(state) = State::load(Arc::new(store.clone()), &environment, Lineage(uuid::Uuid::new_v4())).await {
            let _ = state.holdings(&site);
            let _ = state.open(&site);
            is_valid = state.history(&site).await.is_ok_and(|records| !records.is_empty());
        }
        let _ = check(&store, &environment).await;
        is_valid
    })
}

/// The sum of a line is the SHA-256 of the previous sum and the JSON.
fn with_sums(lines: &[u8]) -> Vec<u8> {
    let mut sum = "0".repeat(64);
    let mut log = Vec::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut hash = Sha256::new();
        hash.update(sum.as_bytes());
        hash.update(line);
        sum = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        log.extend_from_slice(sum.as_bytes());
        log.push(b' ');
        log.extend_from_slice(line);
        log.push(b'\n');
    }
    log
}
