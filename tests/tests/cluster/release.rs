//! An operator goes back to the image of an earlier release, and forward again.

use serde_json::Value;
use textnlp_tests::counts;

use super::operator::{Operator, pinned};

#[test]
fn rollback_uses_the_image_of_an_earlier_release() {
    let Some(operator) = Operator::new("release") else { return };
    let [first, second, third] = ["local/textnlp:1", "local/textnlp:2", "local/textnlp:3"].map(pinned);
    let [to_second, to_third] = [&second, &third].map(|image| format!("sites[0].cluster.image={image}"));
    let to_second = to_second.as_str();
    let runs = || {
        let deployment = operator.get("deployment", "textnlp-api");
        deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned()
    };
    let json = |args: &[&str], set: &str| operator.run(&[args, &["-o", "json"]].concat(), &[set]).expect(0).json();
    let history = || -> Vec<Value> {
        let said = json(&["release", "history"], to_second);
        said["releases"].as_array().unwrap().iter().map(|one| one["lock"]["images"]["main"].clone()).collect()
    };
    operator.up(&[]);
    operator.up(&[to_second]);
    assert_eq!(runs(), second);
    assert_eq!(history(), [first.as_str(), second.as_str()]);

    // From one that the environment names and that never ran, back is to what runs.
    let back = json(&["rollback"], &to_third);
    assert_eq!((&back["to"], &back["changed"][0]["what"]), (&2.into(), &"images.main".into()), "{back:#}");
    // From what runs, to what ran before it; the environment may go on naming the newer one.
    let back = json(&["rollback"], to_second);
    assert_eq!((&back["to"], &back["release"]["images"]["main"]), (&1.into(), &first.as_str().into()), "{back:#}");
    let up = operator.run(&["up", "--yes", "--no-gate"], &[to_second]).expect(0);
    assert!(up.err.contains(&format!("pins the image {first}")) && up.err.contains("release set"), "{}", up.err);
    assert_eq!(runs(), first);
    assert_eq!(history(), [first.as_str(), second.as_str(), first.as_str()]);
    assert_eq!(operator.run(&["generate", "Once"], &[to_second]).exit, 0);

    // Another program of this machine changes nothing: pods run that of their image.
    let other = operator.sandbox.folder().join("other");
    std::fs::write(&other, "of tomorrow").unwrap();
    let again = json(&["up", "--yes", "--no-gate", "--server", other.as_str()], to_second);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");

    // By its number, and by what the environment says.
    let refused = operator.run(&["rollback", "--to", "9"], &[to_second]).expect(2);
    assert!(refused.err.contains("has no entry 9"), "{}", refused.err);
    json(&["rollback", "--to", "2"], to_second);
    operator.up(&[to_second]);
    assert_eq!(runs(), second);
    json(&["rollback", "--to", "1"], to_second);
    json(&["release", "set"], to_second);
    let again = operator.up(&[to_second]);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");
    operator.run(&["down", "--yes"], &[to_second]).expect(0);
}
