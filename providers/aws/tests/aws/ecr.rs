//! Image repositories.

use serde_json::{Value, json};
use textnlp_provider::component::{Component, ComponentSpec, Registry};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::{Provider, Verb, Wanted};
use textnlp_sim::aws::ecr::Ecr;

use crate::kms::key;
use crate::network::{finish, operation, with};
use crate::{Bench, output, run, site, wanted};

fn repository(key: Option<&str>) -> Wanted {
    let selection =
        json!({ "tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 14 });
    let rule = json!({ "rulePriority": 1, "description": "images without a tag", "selection": selection, "action": { "type": "expire" } });
    let spec = json!({
        "name": "textnlp/server", "immutable": true, "scan_on_push": true, "key": key,
        "lifecycle": { "rules": [rule] }, "tags": {},
    });
    wanted("here/registry/repository", "aws.repository", &spec)
}

#[test]
fn an_ecr_repository_lives() {
    let bench = Bench::new();
    run(async {
        let (bed, key) = (bench.bed(), key());
        let made = bed.make(&key).await?;
        let wanted = repository(Some(&output(&made, "arn")));
        let changed = with(
            &Wanted { spec: with(&wanted, "lifecycle", Value::Null), ..wanted.clone() },
            "scan_on_push",
            json!(false),
        );
        bed.whole_life(&wanted, Some(&changed)).await?;
        bed.unmake(&key, &made).await
    });
}

#[test]
fn an_ecr_repository_with_images_is_deleted_with_them() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), repository(None));
        let made = bed.make(&wanted).await?;
        let state = bench.simulator.world().state::<Ecr>(&Bench::scope()).repositories.len();
        assert_eq!(state, 1);
        {
            let mut world = bench.simulator.world();
            let ecr = world.state::<Ecr>(&Bench::scope());
            let images = &mut ecr.repositories.get_mut("textnlp/server").unwrap().images;
            images.insert("1.0".to_owned(), "sha256:0".to_owned());
        }
        bed.unmake(&wanted, &made).await?;
        assert!(bench.simulator.world().state::<Ecr>(&Bench::scope()).repositories.is_empty());
        Ok(())
    });
}

#[test]
fn an_ecr_repository_needs_a_key_that_can_be_used() {
    let bench = Bench::new();
    run(async {
        let (bed, key) = (bench.bed(), key());
        let made = bed.make(&key).await?;
        bed.unmake(&key, &made).await?;
        let wanted = repository(Some(&output(&made, "arn")));
        let error = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap_err();
        assert_eq!(error.code.as_deref(), Some("KmsException"));
        assert!(!error.kind.may_pass(), "{:?}", error.kind);
        Ok(())
    });
}

#[test]
fn only_the_ecr_registry_of_the_account_gets_a_repository() {
    let bench = Bench::new();
    let lowered = |url: &str| {
        let part = ComponentSpec::Registry(Registry { url: url.to_owned() });
        let component = Component { name: "registry".parse().unwrap(), existing: None, part };
        bench.provider.lower(&component, &site())
    };
    let own = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let wanted = lowered(&format!("https://{own}/team/textnlp/")).unwrap();
    assert_eq!(wanted.len(), 1);
    assert_eq!(wanted[0].spec.get("name"), Some(&json!("team/textnlp")));
    for other in ["registry.example.com/textnlp", "210987654321.dkr.ecr.eu-west-1.amazonaws.com/textnlp"] {
        assert!(lowered(other).unwrap().is_empty(), "{other}");
    }
    assert!(lowered(own).is_err());
    let part = ComponentSpec::Registry(Registry { url: format!("{own}/textnlp") });
    let component = Component { name: "registry".parse().unwrap(), existing: None, part };
    lowers_purely(&bench.provider, &component, &site()).unwrap();
}
