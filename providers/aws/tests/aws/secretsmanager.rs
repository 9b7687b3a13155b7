//! Secrets of Secrets Manager.

use serde_json::json;
use textnlp_provider::{Verb, Wanted};
use textnlp_sim::aws::secretsmanager::SecretsManager;
use textnlp_sim::{Disruption, Options, Rule, Simulator, Timing};

use crate::kms::key;
use crate::network::{finish, operation, with};
use crate::rds::password;
use crate::{Bench, output, run, wanted};

const NAME: &str = "textnlp/staging/here/database-password";

fn bench() -> Bench {
    let timing = Timing { consistency: std::time::Duration::from_secs(4), ..Timing::default() };
    let simulator = Simulator::start(Options { timing, ..Options::default() });
    Bench::of(simulator, [(password("1"), "first"), (password("2"), "second")])
}

fn secret(key: Option<&str>) -> Wanted {
    let spec = json!({ "name": NAME, "description": "a test", "key": key, "value": password("1"), "tags": {} });
    wanted("here/secrets/database-password", "aws.secret", &spec)
}

#[test]
fn a_secretsmanager_secret_lives() {
    let bench = bench();
    run(async {
        let (bed, key) = (bench.bed(), key());
        let made = bed.make(&key).await?;
        let wanted = secret(Some(&output(&made, "arn")));
        let changed =
            with(&Wanted { spec: with(&wanted, "value", json!(password("2"))), ..wanted.clone() }, "key", json!(null));
        bed.whole_life(&wanted, Some(&changed)).await
    });
}

#[test]
fn a_lost_reply_writes_no_secretsmanager_version_twice() {
    let bench = bench();
    bench.simulator.faults().add(Rule::nth("secretsmanager", "PutSecretValue", 1, Disruption::LostReply));
    run(async {
        let bed = bench.bed();
        let made = bed.make(&secret(None)).await?;
        let wanted = Wanted { spec: with(&secret(None), "value", json!(password("2"))), ..secret(None) };
        finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        let world = bench.simulator.world();
        let secret = &world.find::<SecretsManager>(&Bench::scope()).unwrap().secrets[NAME];
        assert_eq!(secret.versions.len(), 2);
        assert!(secret.versions.values().any(|value| value == "second"));
        Ok(())
    });
}
