//! The contract's lists, tried on every kind of this provider.

use crate::machine::{Machine, stand_in};
use camino::Utf8PathBuf;
use serde_json::{Value, json};
use textnlp_provider::conformance::{TestBed, lowers_purely, well_formed};
use textnlp_provider::{KindName, Ownership, ResourceId, Spec, Wanted};

#[test]
fn kinds_are_well_formed() {
    well_formed(&*Machine::new(1).onprem).unwrap();
}

#[test]
fn component_expansion_is_pure() {
    let machine = Machine::guarded();
    for component in &machine.components {
        lowers_purely(&*machine.onprem, component, &machine.site).unwrap();
    }
}

/// The same spec with something that can be changed in place; `None` for kinds that have nothing of the sort.
fn changed(machine: &Machine, wanted: &Wanted) -> Option<Spec> {
    let mut spec: Value = wanted.spec.as_value().clone();
    match wanted.kind.as_str() {
        "onprem.directory" => spec["tags"] = json!({ "team": "b" }),
        "onprem.authority" => spec["days"] = json!(1000),
        "onprem.certificate" => spec["names"] = json!(["localhost", "other.example"]),
        "onprem.database" => spec["schema"] = json!(4),
        "onprem.schema" => spec["version"] = json!(4),
        "onprem.api-key" => spec["sha256"] = json!("0".repeat(64)),
        "onprem.process" => spec["inputs"]["other"] = json!("digest"),
        "onprem.model" => {
            let other = Utf8PathBuf::from_path_buf(machine.dir.path().join("another model")).unwrap();
            if !other.exists() {
                crate::machine::make_model(&other, 3);
            }
            spec["source"] = json!(format!("file:{other}"));
        }
        "onprem.program" => {
            let other = Utf8PathBuf::from_path_buf(machine.dir.path().join("another program")).unwrap();
            let mut bytes = std::fs::read(stand_in()).unwrap();
            bytes.push(0);
            std::fs::write(&other, bytes).unwrap();
            spec["source"] = json!(other);
            spec["sha256"] = json!(crate::machine::sha256(&other));
        }
        "onprem.file" if spec.get("document").is_some_and(Value::is_object) => spec["document"]["added"] = json!(true),
        _ => return None,
    }
    Some(Spec::of(&spec))
}

/// The folder of a PostgreSQL, which the programs of a real one make: `None` where there are none.
fn postgres(machine: &Machine) -> Option<Wanted> {
    let is_there = std::fs::read_dir("/usr/lib/postgresql").is_ok_and(|versions| versions.count() > 0);
    if !is_there {
        assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "no PostgreSQL is installed");
        eprintln!("NOT TESTED: onprem.postgres, no PostgreSQL is installed");
        return None;
    }
    Some(Wanted {
        id: ResourceId::new("here/database/primary").unwrap(),
        kind: KindName::new("onprem.postgres").unwrap(),
        site: machine.site.name.clone(),
        via: None,
        spec: Spec::of(&json!({ "path": "postgres", "version": 15 })),
        needs: Vec::new(),
        ownership: Ownership::Ours,
        protected: false,
    })
}

#[tokio::test]
async fn every_kind_passes_its_lifecycle() {
    let mut machine = Machine::guarded();
    let onprem = machine.onprem.clone();
    let bench = TestBed::new(&*onprem, machine.site.environment.clone(), machine.site.name.clone(), machine.lineage);
    let mut kept = Vec::new();
    let mut tried = std::collections::BTreeSet::new();
    let mut all = machine.wanted();
    all.extend(postgres(&machine));
    for wanted in all {
        let wanted = Wanted { spec: machine.resolved(&wanted), ..wanted };
        let changed = changed(&machine, &wanted);
        bench.whole_life(&wanted, changed.as_ref()).await.unwrap_or_else(|breach| panic!("{}: {breach}", wanted.id));
        let recorded = bench.make(&wanted).await.unwrap();
        tried.insert(wanted.kind.as_str().to_owned());
        machine.recorded.insert(wanted.id.clone(), recorded.clone());
        kept.push((wanted, recorded));
    }
    use textnlp_provider::Provider;
    let untried: Vec<&str> =
        onprem.kinds().iter().map(|kind| kind.name).filter(|name| !tried.contains(*name)).collect();
    // A public certificate needs an authority that reaches the gateway: tests/tests/acme.rs has one.
    let without_postgres = postgres(&machine).is_none().then_some("onprem.postgres");
    let expected: Vec<&str> = without_postgres.into_iter().chain(["onprem.public-certificate"]).collect();
    assert_eq!(untried, expected, "every other kind was tried");
    for (wanted, recorded) in kept.iter().rev() {
        bench.unmake(wanted, recorded).await.unwrap();
    }
    assert!(!machine.folder().exists());
}
