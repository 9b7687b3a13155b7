//! Foreign objects with the tags of a deployment: an identity that may set tags may not be allowed to delete.

use std::collections::BTreeMap;
use std::time::Duration;

use textnlp_provider::Lineage;
use textnlp_sim::Options;

use crate::engine::{Account, DOWN, Stack, UP};
use crate::programs::of_lineage;
use crate::shape::Shape;

/// Longer than AWS may show a new object without its tags.
const SETTLED: Duration = Duration::from_secs(600);

/// The ARNs and tags of a deployment's objects.
fn of(account: &Account, lineage: Lineage) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut all = account.tags();
    all.retain(|_, tags| of_lineage(tags, lineage).is_some());
    all
}

/// Gives the objects of others the tags of this deployment: each second one the operation too, of the object that it copies.
fn relabel(account: &Account, theirs: &BTreeMap<String, BTreeMap<String, String>>, ours: &Stack<'_>) {
    let operations: BTreeMap<String, String> = of(account, ours.lineage())
        .into_values()
        .filter_map(|tags| Some((tags.get("textnlp-resource")?.clone(), tags.get("textnlp-operation")?.clone())))
        .collect();
    let mut world = account.simulator.world();
    let now = world.now();
    for (number, (arn, tags)) in theirs.iter().enumerate() {
        world.tags.set(arn, [("textnlp-lineage".to_owned(), ours.lineage().to_string())], now);
        match operations.get(&tags["textnlp-resource"]) {
            Some(token) if number % 2 == 0 => {
                world.tags.set(arn, [("textnlp-operation".to_owned(), token.clone())], now);
            }
            _ => world.tags.remove(arn, ["textnlp-operation"]),
        }
    }
}

#[test]
fn objects_of_others_with_our_tags_are_neither_changed_nor_deleted() {
    let account = Account::new(Options::zero_latency());
    let shape = Shape::full().otherwise().core();
    let other_process = account.again();
    let theirs = Stack::new(&other_process, "theirs", 7);
    let their_wanted = shape.wanted(&account, "theirs");
    theirs.reach(UP, &their_wanted);
    let before = of(&account, theirs.lineage());
    assert!(before.len() > 20, "{}", before.len());

    let ours = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0003);
    let wanted = shape.wanted(&account, "staging");
    ours.reach(UP, &wanted);
    relabel(&account, &before, &ours);
    let (plan, _) = ours.look(UP, &wanted);
    assert!(plan.steps.is_empty(), "{:#?}", plan.steps);
    let named = plan.warnings.iter().filter(|one| one.cause.contains("no operation in the state created it"));
    assert!(named.count() > 10, "{:#?}", plan.warnings);
    ours.reach(UP, &wanted);
    ours.reach(DOWN, &[]);
    assert_eq!(ours.recorded(), []);

    // With their own tags again they are as they were.
    {
        let mut world = account.simulator.world();
        let now = world.now();
        for (arn, tags) in &before {
            assert!(world.tags.has(arn), "{arn} is gone");
            world.tags.set(arn, tags.clone(), now);
        }
    }
    assert_eq!(of(&account, theirs.lineage()), before);
    let (plan, _) = theirs.look(UP, &their_wanted);
    assert!(plan.steps.is_empty() && plan.blocked.is_empty(), "{plan:#?}");
}

#[test]
fn a_named_object_without_its_lineage_stops_up_and_down_with_the_way_out() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 9);
    let wanted = Shape { models: true, ..Shape::BARE }.wanted(&account, "staging");
    stack.reach(UP, &wanted);
    stack.pass(SETTLED);
    let before = account.tags();
    let (bucket, tags) = before.iter().find(|(arn, _)| arn.starts_with("arn:aws:s3:::")).unwrap();
    let without = |keys: &[&str]| {
        let mut world = account.simulator.world();
        let now = world.now();
        world.tags.set(bucket, tags.clone(), now);
        keys.iter().for_each(|key| world.tags.remove(bucket, [*key]));
    };
    for keys in [&["textnlp-lineage"][..], &["textnlp-lineage", "textnlp-resource", "textnlp-operation"][..]] {
        without(keys);
        let refusals =
            [(UP, wanted.as_slice()), (DOWN, &wanted[..0])].map(|(ask, wanted)| stack.look(ask, wanted).0.refusals);
        let [refusal] = refusals[0].as_slice() else { panic!("{refusals:#?}") };
        assert!(refusal.cause.contains("no label `textnlp-lineage`"), "{refusal}");
        assert!(refusal.fix.contains("restore its labels `textnlp-lineage` and `textnlp-resource`"), "{refusal}");
        assert_eq!(refusals[0], refusals[1]);
    }
    without(&[]);
    let (plan, _) = stack.look(UP, &wanted);
    assert!(plan.steps.is_empty() && plan.refusals.is_empty(), "{plan:#?}");
    stack.reach(DOWN, &[]);
    assert_eq!(stack.recorded(), []);
}

#[test]
fn lineage_tags_of_objects_with_assigned_ids_are_restored() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 10);
    let wanted = Shape { network: true, models: true, ..Shape::BARE }.wanted(&account, "staging");
    stack.reach(UP, &wanted);
    let before = account.tags();
    let has_assigned_id =
        |arn: &&String| [":vpc/", ":subnet/", ":natgateway/", ":key/"].iter().any(|part| arn.contains(part));
    let stripped: Vec<&String> = before.keys().filter(has_assigned_id).collect();
    assert!(stripped.len() > 3, "{stripped:?}");
    stripped.iter().for_each(|arn| account.simulator.world().tags.remove(arn, ["textnlp-lineage"]));
    let (plan, _) = stack.look(UP, &wanted);
    assert!(plan.refusals.is_empty() && plan.summary.update + plan.summary.possible >= stripped.len(), "{plan:#?}");
    stack.reach(UP, &wanted);
    assert_eq!(account.tags(), before);
    let (plan, _) = stack.look(UP, &wanted);
    assert!(plan.steps.is_empty(), "{:#?}", plan.steps);
}

#[test]
fn a_first_up_names_the_objects_of_others_in_its_way() {
    let account = Account::new(Options::zero_latency());
    let network = Shape { cluster: false, database: false, models: false, registry: false, ..Shape::full().core() };
    let other_process = account.again();
    let theirs = Stack::new(&other_process, "theirs", 7);
    theirs.reach(UP, &network.wanted(&account, "theirs"));
    let before = of(&account, theirs.lineage());
    let ours = Stack::new(&account, "staging", 8);
    relabel(&account, &before, &ours);
    let before = account.tags();
    let (plan, _) = ours.look(UP, &network.wanted(&account, "staging"));
    let named = plan.refusals.iter().filter(|problem| problem.cause.contains("no operation in the state created it"));
    assert!(named.count() > 0, "{:#?}", plan.refusals);
    let refused = ours.go(UP, &network.wanted(&account, "staging"), &textnlp_provider::memory::Fuse::default());
    assert!(refused.unwrap().is_err());
    assert_eq!(account.tags(), before);
}
