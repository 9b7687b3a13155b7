//! Terraform states, as the tool writes them and as nobody should.

use std::sync::Arc;

use camino::Utf8Path;
use serde_json::{Value, json};
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::export::terraform;
use textnlp_orchestrator::import::{Matched, lineage_of, matched, read_terraform};
use textnlp_orchestrator::run::read;
use textnlp_orchestrator::state::{MemoryStore, State, Store};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{CloudId, KindName, Lineage, Spec, Wanted};

use super::Tool;
use crate::world::*;

fn file(resources: Value) -> Vec<u8> {
    let document = json!({
        "version": 4, "terraform_version": "1.11.4", "serial": 7, "lineage": "0c2f7a3e", "outputs": { "key": { "value": "hunter2" } },
        "resources": resources, "check_results": null,
    });
    document.to_string().into_bytes()
}

fn instance(attributes: Value) -> Value {
    json!({ "schema_version": 0, "attributes": attributes, "sensitive_attributes": [] })
}

fn managed(kind: &str, name: &str, instances: Value) -> Value {
    json!({ "mode": "managed", "type": kind, "name": name, "provider": "provider[\"registry.terraform.io/x/memory\"]", "instances": instances })
}

/// What a lost state of this world and a file come to.
fn import(world: &World, wanted: &[Wanted], bytes: &[u8]) -> Matched {
    import_into(MemoryStore::default(), world, wanted, bytes)
}

/// What this state of a world and a file come to.
fn import_into(state: MemoryStore, world: &World, wanted: &[Wanted], bytes: &[u8]) -> Matched {
    let file = read_terraform(bytes).unwrap();
    let (sites, environment) = (world.site(wanted, &Fuse::default()), environment());
    let store: Arc<dyn Store> = Arc::new(state);
    let mut road = world.road(store.clone(), &sites, &environment, &DiscardEvents);
    road.fresh = world.state().lineage();
    let facts = async {
        let state = State::load(store, &environment, road.fresh).await.unwrap();
        let facts = read(&road, &state, UP).await.unwrap();
        matched(&facts, &file).await
    };
    world.clock.run(facts).unwrap()
}

fn told(matched: &Matched) -> Vec<String> {
    let taken = matched.proposals.iter().map(|one| format!("+ {} {}", one.resource, one.recorded.cloud_id));
    let left = matched.left.iter().map(|left| format!("· {}: {}", left.address, left.because));
    taken.chain(left).collect()
}

#[track_caller]
fn check(bytes: &[u8], expected: &[&str]) {
    let problems = read_terraform(bytes).expect_err("it is refused").0;
    let lines: Vec<String> = problems.iter().map(|problem| format!("{}: {}", problem.place, problem.cause)).collect();
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{line}\nis not\n{expected}");
    }
    assert!(problems.iter().all(|problem| !problem.fix.is_empty()));
}

#[test]
fn invalid_terraform_states_are_refused_with_the_reason() {
    check(b"", &["it is not JSON"]);
    check(b"resource \"aws_vpc\" \"main\" {}", &["it is not JSON"]);
    check(&[0xff; 64], &["it is not JSON"]);
    check(b"[]", &["it is not a Terraform state"]);
    check(b"{}", &["it has no `version`"]);
    check(b"{\"version\": \"4\"}", &["it has no `version`"]);
    check(b"{\"version\": 3}", &["its version is 3; this program reads 4"]);
    check(b"{\"version\": 5}", &["its version is 5; this program reads 4"]);
    check(b"{\"version\": 4.5}", &["its version is 4.5"]);
    check(b"PK\x03\x04rest", &["saved plan"]);
    check(b"age-encryption.org/v1\n", &["encrypted with age"]);
    check(b"-----BEGIN PGP MESSAGE-----", &["encrypted"]);
    let sealed = br#"{"serial":1,"lineage":"x","meta":{},"encrypted_data":"AAAA","encryption_version":"v0"}"#;
    check(sealed, &["it is encrypted"]);
    check(br#"{"data":"ENC[AES256_GCM,data:x]","sops":{"version":"3"}}"#, &["it is encrypted"]);
    check(br#"{"format_version":"1.0","values":{}}"#, &["terraform show -json"]);
    let deep = format!("{{\"version\":4,\"x\":{}", "[".repeat(100_000));
    check(deep.as_bytes(), &["it is not JSON"]);
}

#[test]
fn all_errors_of_a_terraform_state_are_in_one_report() {
    let good = instance(json!({ "id": "a" }));
    check(br#"{"version":4}"#, &["terraform_version", "lineage", "serial", "resources: it is not a list"]);
    let resources = json!([
        7,
        { "mode": "managed", "type": "", "name": "x\u{1b}[2J", "instances": [] },
        { "mode": "other", "type": "a", "name": "b", "instances": [] },
        { "mode": "managed", "type": "a", "name": "b", "module": "x", "instances": [] },
        { "mode": "managed", "type": "a", "name": "b", "instances": 7 },
        managed("a", "c", json!([7, { "schema_version": -1, "attributes": [], "index_key": 1.5, "status": "odd", "deposed": 3 }])),
        managed("a", "old", json!([{ "schema_version": 0, "attributes_flat": { "id": "x" } }])),
        managed("a", "d", json!([{ "schema_version": 0, "attributes": {}, "sensitive_attributes": [[{ "type": "index", "value": 1 }]] }])),
        managed("a", "e", json!([good, good])),
    ]);
    check(
        &file(resources),
        &[
            "resources[0]: it is not an object",
            "resources[1].type",
            "resources[1].name",
            "resources[2].mode: `other`",
            "resources[3].module",
            "resources[4].instances",
            "resources[5].instances[0]",
            "resources[5].instances[1].index_key",
            "resources[5].instances[1].schema_version",
            "resources[5].instances[1].deposed",
            "resources[5].instances[1].status",
            "resources[5].instances[1].attributes",
            "resources[6].instances[0]: its attributes have the format of Terraform before 0.12",
            "resources[7].instances[0].sensitive_attributes",
            "resources[8].instances[1]: `a.e` is in the file twice",
        ],
    );
    let many: Vec<Value> = (0..1000).map(Value::from).collect();
    let problems = read_terraform(&file(json!(many))).unwrap_err().0;
    assert_eq!(problems.len(), 41);
    assert!(problems[40].cause.starts_with("960 more"), "{}", problems[40]);
}

#[test]
fn resource_addresses_match_those_terraform_shows() {
    let mut counted = instance(json!({}));
    counted["index_key"] = json!(2);
    let mut keyed = instance(json!({}));
    keyed["index_key"] = json!("a \"b\"");
    let mut deposed = instance(json!({}));
    deposed["deposed"] = json!("ab12cd34");
    let mut inside = managed("t", "n", json!([counted, keyed]));
    inside["module"] = json!("module.a[\"x\"].module.b[0]");
    let mut data = managed("t", "n", json!([instance(json!({}))]));
    data["mode"] = json!("data");
    let file =
        read_terraform(&file(json!([inside, data, managed("t", "n", json!([instance(json!({})), deposed]))]))).unwrap();
    let addresses: Vec<String> = file.objects.iter().map(|object| format!("{object:?}")).collect();
    assert_eq!(
        addresses,
        [
            "module.a[\"x\"].module.b[0].t.n[2]",
            "module.a[\"x\"].module.b[0].t.n[\"a \\\"b\\\"\"]",
            "data.t.n",
            "t.n",
            "t.n (deposed ab12cd34)",
        ]
    );
    assert_eq!((file.serial, file.tool.as_str(), file.lineage.as_str()), (7, "1.11.4", "0c2f7a3e"));
}

/// What the cloud calls the object behind a resource.
fn cloud_id(world: &World, name: &str) -> String {
    let thing = world.cloud.things().into_iter().find(|thing| thing.resource == Some(id(&format!("here/{name}"))));
    thing.unwrap().cloud_id.to_string()
}

#[test]
fn mapped_objects_are_imported_and_others_left_with_a_reason() {
    let world = World::new();
    let wanted = service();
    world.up(&wanted);
    let cloud_id = |name: &str| cloud_id(&world, name);
    let foreign = CloudId::new("somebody-else-s").unwrap();
    world.cloud.place_foreign(&KindName::new("memory.network").unwrap(), &foreign, None, Spec::of(&json!({})));
    let net = |name: &str, attributes: Value| managed("memory_network", name, json!([instance(attributes)]));
    let mut sealed = instance(json!({ "id": "hunter2" }));
    sealed["sensitive_attributes"] = json!([[{ "type": "get_attr", "value": "id" }]]);
    let mut tainted = instance(json!({ "id": cloud_id("net") }));
    tainted["status"] = json!("tainted");
    let mut read_only = net("looked_up", json!({ "id": cloud_id("net") }));
    read_only["mode"] = json!("data");
    let matched = import(
        &world,
        &wanted,
        &file(json!([
            read_only,
            managed("memory_network", "half", json!([tainted])),
            managed("memory_network", "sealed", json!([sealed])),
            net("none", json!({ "id": null })),
            net("odd", json!({ "id": 7 })),
            net("gone", json!({ "id": "not-there" })),
            net("foreign", json!({ "id": foreign })),
            managed(
                "memory_vpc",
                "main",
                json!([instance(json!({ "network_id": cloud_id("net"), "password": "hunter2" }))])
            ),
            net("twice", json!({ "id": cloud_id("net") })),
            managed("memory_server", "replica", json!([instance(json!({ "id": cloud_id("server/replica-0") }))])),
            managed("memory_server", "other", json!([instance(json!({ "id": "not-listed" }))])),
            managed("random_password", "db", json!([instance(json!({ "result": "hunter2" }))])),
        ])),
    );
    let network = cloud_id("net");
    assert_eq!(
        told(&matched),
        [
            format!("+ here/net {network}"),
            // Two resources are of its kind; its own marks say which one it is.
            format!("+ here/server/replica-0 {}", cloud_id("server/replica-0")),
            "· data.memory_network.looked_up: Terraform only reads it".to_owned(),
            "· memory_network.half: its creation failed before it was complete".to_owned(),
            "· memory_network.sealed: its `id` is marked as sensitive, and is not read".to_owned(),
            "· memory_network.none: it has no `id`".to_owned(),
            "· memory_network.odd: its `id` is not an id".to_owned(),
            "· memory_network.gone: the provider has no `not-there`".to_owned(),
            "· memory_network.foreign: `somebody-else-s` has no lineage label: it was not created by this program"
                .to_owned(),
            "· memory_network.twice: `memory_vpc.main` is `here/net` already".to_owned(),
            "· memory_server.other: it can be any of `here/server/replica-0`, `here/server/replica-1`".to_owned(),
            "· random_password.db: no provider of this environment creates `random_password`".to_owned(),
        ]
    );
    let hint = |at: usize| matched.left[at].hint.clone().unwrap_or_default();
    assert!(hint(6).contains("existing: somebody-else-s"), "{}", hint(6));
    assert!(hint(8).starts_with("choose one: state import RESOURCE="), "{}", hint(8));
    // What the file keeps secret is nowhere in what is printed or recorded.
    let all = format!("{}{}", json!(matched.proposals), json!(matched.left));
    assert!(!all.contains("hunter2"), "{all}");
}

#[test]
fn each_object_is_imported_once() {
    let world = World::new();
    let wanted = service();
    world.up(&wanted);
    let cloud_id = |name: &str| cloud_id(&world, name);
    let exported = |name: &str, resource: &str, cloud_id: &str| {
        let input = json!({ "resource": resource, "id": cloud_id, "kind": "memory.thing" });
        managed("terraform_data", name, json!([instance(json!({ "input": input }))]))
    };
    // The record knows the network; the environment wants one more, which is not recorded.
    let net = cloud_id("net");
    let more = [wanted.clone(), vec![want("more", "network", json!({ "cidr": "10.1.0.0/16" }))]].concat();
    let bytes = file(json!([
        managed("memory_network", "main", json!([instance(json!({ "id": net }))])),
        exported("same", "here/more", &net),
    ]));
    let is_net = |address: &str| format!("· {address}: `{net}` is `here/net` already");
    let matched = import_into(world.disk.clone(), &world, &more, &bytes);
    assert_eq!(told(&matched), [is_net("memory_network.main"), is_net("terraform_data.same")]);

    // Nor by two objects of one file.
    let server = cloud_id("server/replica-0");
    let bytes = file(json!([
        exported("first", "here/server/replica-0", &server),
        exported("second", "here/server/replica-1", &server),
    ]));
    let expected = [
        format!("+ here/server/replica-0 {server}"),
        format!("· terraform_data.second: `{server}` is `here/server/replica-0` already"),
    ];
    assert_eq!(told(&import(&world, &wanted, &bytes)), expected);
}

#[test]
fn export_round_trips_through_terraform() {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let Some(tool) = Tool::find(folder) else { return };
    let world = World::new();
    let wanted = service();
    world.up(&wanted);
    let state = world.state();
    let exported = terraform(&environment(), state.lineage(), &state.holdings(&here()).unwrap());
    std::fs::write(folder.join("staging.tf.json"), exported.to_string()).unwrap();
    tool.run(&["init", "-input=false", "-no-color"]);
    tool.run(&["apply", "-input=false", "-no-color", "-auto-approve"]);
    let bytes = std::fs::read(folder.join("terraform.tfstate")).unwrap();
    let file = read_terraform(&bytes).unwrap();
    assert_eq!(lineage_of(&file), Some(state.lineage()));

    // Every object again, as the provider shows it, and not as the file says.
    let back = import(&world, &wanted, &bytes);
    assert_eq!((back.proposals.len(), back.left.len()), (wanted.len(), 0), "{:#?}", told(&back));
    for proposal in &back.proposals {
        let recorded = state.holdings(&here()).unwrap()[&proposal.resource].current.clone().unwrap();
        assert_eq!((&proposal.recorded.cloud_id, &proposal.recorded.spec), (&recorded.cloud_id, &recorded.spec));
    }
    // What the environment does not want any more, and another deployment's file.
    let less = import(&world, &without(wanted.clone(), &["gateway"]), &bytes);
    assert_eq!(less.proposals.len(), wanted.len() - 1);
    assert!(less.left[0].because.contains("the environment has no `here/gateway`"), "{:?}", less.left);
    let text = String::from_utf8(bytes).unwrap();
    let other = text.replace(&state.lineage().to_string(), &Lineage(uuid::Uuid::from_u128(99)).to_string());
    let other = import(&world, &wanted, other.as_bytes());
    assert!(other.proposals.is_empty() && other.left.iter().all(|left| left.because.contains("belongs to deployment")));
}
