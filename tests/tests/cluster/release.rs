//! An operator goes back to the image of an earlier release, and forward again.

use serde_json::Value;
use textnlp_tests::counts;

use super::operator::Operator;

const SECOND: &str = "sites[0].cluster.image=local/textnlp:2";

#[test]
fn rollback_uses_the_image_of_an_earlier_release() {
    let Some(operator) = Operator::new("release") else { return };
    let runs = || {
        let deployment = operator.get("deployment", "textnlp-api");
        deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned()
    };
    let json = |args: &[&str], set: &str| operator.run(&[args, &["-o", "json"]].concat(), &[set]).expect(0).json();
    let history = || -> Vec<Value> {
        let said = json(&["release", "history"], SECOND);
        said["releases"].as_array().unwrap().iter().map(|one| one["lock"]["images"]["main"].clone()).collect()
    };
    operator.up(&[]);
    operator.up(&[SECOND]);
    assert_eq!(runs(), "local/textnlp:2");
    assert_eq!(history(), ["local/textnlp:1", "local/textnlp:2"]);

    // From one that the environment names and that never ran, back is to what runs.
    let back = json(&["rollback"], "sites[0].cluster.image=local/textnlp:3");
    assert_eq!((&back["to"], &back["changed"][0]["what"]), (&2.into(), &"images.main".into()), "{back:#}");
    // From what runs, to what ran before it; the environment may go on naming the newer one.
    let back = json(&["rollback"], SECOND);
    assert_eq!((&back["to"], &back["release"]["images"]["main"]), (&1.into(), &"local/textnlp:1".into()), "{back:#}");
    let up = operator.run(&["up", "--yes", "--no-gate"], &[SECOND]).expect(0);
    assert!(up.err.contains("pins the image local/textnlp:1") && up.err.contains("release set"), "{}", up.err);
    assert_eq!(runs(), "local/textnlp:1");
    assert_eq!(history(), ["local/textnlp:1", "local/textnlp:2", "local/textnlp:1"]);
    assert_eq!(operator.run(&["generate", "Once"], &[SECOND]).exit, 0);

    // Another program of this machine changes nothing: pods run that of their image.
    let other = operator.sandbox.folder().join("other");
    std::fs::write(&other, "of tomorrow").unwrap();
    let again = json(&["up", "--yes", "--no-gate", "--server", other.as_str()], SECOND);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");

    // By its number, and by what the environment says.
    let refused = operator.run(&["rollback", "--to", "9"], &[SECOND]).expect(2);
    assert!(refused.err.contains("has no entry 9"), "{}", refused.err);
    json(&["rollback", "--to", "2"], SECOND);
    operator.up(&[SECOND]);
    assert_eq!(runs(), "local/textnlp:2");
    json(&["rollback", "--to", "1"], SECOND);
    json(&["release", "set"], SECOND);
    let again = operator.up(&[SECOND]);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");
    operator.run(&["down", "--yes"], &[SECOND]).expect(0);
}
