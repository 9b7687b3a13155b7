//! Image repositories.

use std::sync::Arc;

use async_trait::async_trait;
use aws_credential_types::Credentials;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use textnlp_cloud::{ImageSource, ImageTarget};
use textnlp_provider::component::{Component, ComponentSpec, Registry};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::{CloudId, Error, ErrorKind, Provider, Result, Verb, Wanted};
use textnlp_sim::Simulator;
use textnlp_sim::aws::ecr::Ecr;

use crate::kms::key;
use crate::network::{finish, operation, seen, with};
use crate::{Bench, output, run, site, wanted};

fn repository(key: Option<&str>) -> Wanted {
    let selection =
        json!({ "tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 14 });
    let rule = json!({ "rulePriority": 1, "description": "images without a tag", "selection": selection, "action": { "type": "expire" } });
    let spec = json!({
        "name": "textnlp/server", "immutable": true, "scan_on_push": true, "key": key,
        "lifecycle": { "rules": [rule] }, "images": [], "tags": {},
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
            let images = &mut ecr.repositories.get_mut("textnlp/server").unwrap().pushed.images;
            images.insert("1.0".to_owned(), "sha256:0".to_owned());
        }
        bed.unmake(&wanted, &made).await?;
        assert!(bench.simulator.world().state::<Ecr>(&Bench::scope()).repositories.is_empty());
        Ok(())
    });
}

pub(crate) const MANIFESTS: [&str; 2] = [r#"{"schemaVersion":2,"layers":[]}"#, r#"{"schemaVersion":2,"layers":[1]}"#];

pub(crate) fn digest(manifest: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(manifest.as_bytes())))
}

/// Pushes one of the manifests, whichever is asked for.
pub(crate) struct Images(aws_sdk_ecr::Client);

impl Images {
    pub(crate) fn of(simulator: &Simulator) -> Self {
        let credentials = Credentials::new(Simulator::ACCESS_KEY, Simulator::SECRET_KEY, None, None, "test");
        let config = aws_sdk_ecr::Config::builder()
            .behavior_version(aws_sdk_ecr::config::BehaviorVersion::v2026_01_12())
            .region(aws_sdk_ecr::config::Region::new(crate::REGION))
            .endpoint_url(simulator.url())
            .retry_config(aws_sdk_ecr::config::retry::RetryConfig::disabled())
            .credentials_provider(credentials);
        Self(aws_sdk_ecr::Client::from_conf(config.build()))
    }
}

#[async_trait]
impl ImageSource for Images {
    async fn push(&self, target: &ImageTarget, report: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<()> {
        assert_eq!((target.user.as_str(), target.registry.starts_with("http://127.0.0.1:")), ("AWS", true));
        assert!(!format!("{target:?}").contains(target.password.expose_text().unwrap()));
        report(1, 2);
        let manifest = MANIFESTS.into_iter().find(|manifest| digest(manifest) == target.digest);
        let manifest = manifest.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "push", &target.tag)
                .because("there is no such image here")
                .hint("use another program")
        })?;
        let call =
            self.0.put_image().repository_name(&target.repository).image_tag(&target.tag).image_manifest(manifest);
        let pushed = call.send().await.map(drop);
        pushed.map_err(|error| Error::new(ErrorKind::Unavailable, "push", &target.tag).because(error))
    }
}

/// A bench whose provider pushes images.
fn pushing() -> Bench {
    let Bench { simulator, provider } = Bench::new();
    let images = Images::of(&simulator);
    Bench { simulator, provider: provider.pushing(Arc::new(images)) }
}

#[test]
fn the_image_of_a_release_is_pushed_to_its_repository() {
    let bench = pushing();
    run(async {
        let bed = bench.bed();
        let [first, second] = MANIFESTS.map(digest);
        let of = |images: Value| Wanted { spec: with(&repository(None), "images", images), ..repository(None) };
        let wanted = of(json!([format!("1.0-a@{first}")]));
        let made = bed.make(&wanted).await?;
        assert_eq!(seen(&bench, &wanted, &made).await.spec.get("images"), Some(&json!([format!("1.0-a@{first}")])));
        // The next release adds its image, and that of the last one stays.
        let next = of(json!([format!("1.1-b@{second}")]));
        let object = finish(&bench, &operation(Verb::Update, &next, Some(&made), 200)).await.unwrap();
        assert_eq!(object.spec.get("images").unwrap().as_array().map(Vec::len), Some(2));
        assert!(bench.provider.diff(&wanted, &made, &object).is_empty(), "a rollback pushes nothing");
        assert_eq!((bench.calls("PutImage"), bench.calls("GetAuthorizationToken")), (2, 2));

        let other = of(json!([format!("1.2-c@{}", digest("other"))]));
        let error = finish(&bench, &operation(Verb::Update, &other, Some(&made), 201)).await.unwrap_err();
        assert!(textnlp_provider::error_chain(&error).contains("there is no such image here"), "{error:?}");
        assert_eq!(error.hint.as_deref(), Some("use another program"));
        bed.unmake(&wanted, &made).await
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
        let part = ComponentSpec::Registry(Registry { url: url.to_owned(), image: None });
        let component = Component { name: "registry".parse().unwrap(), existing: None, part };
        bench.provider.lower(&component, &site())
    };
    let own = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let wanted = lowered(&format!("https://{own}/team/textnlp/")).unwrap();
    assert_eq!(wanted.len(), 1);
    assert_eq!(wanted[0].spec.get("name"), Some(&json!("team/textnlp")));
    for other in [
        "registry.example.com/textnlp",
        "210987654321.dkr.ecr.eu-west-1.amazonaws.com/textnlp",
        "123456789012.dkr.ecr.eu-west-1.evil.example/textnlp",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example/textnlp",
    ] {
        assert!(lowered(other).unwrap().is_empty(), "{other}");
    }
    assert!(lowered(own).is_err());
    for name in ["a-b_c.d/e2", "ab", &"a".repeat(256)] {
        assert!(lowered(&format!("{own}/{name}")).is_ok(), "{name}");
    }
    for name in ["a", &"a".repeat(257), "Textnlp", "textnlp:1.0", "text//nlp", "text-/nlp", "text__nlp", "text nlp"] {
        let problems = lowered(&format!("{own}/{name}")).unwrap_err().0;
        assert!(
            problems.iter().any(|problem| problem.cause.contains("no name of a repository")),
            "{name}: {problems:?}"
        );
    }
    let image = format!("sha256:{}", "0".repeat(64));
    let pushed = |url: &str, existing: Option<&str>| {
        let part =
            ComponentSpec::Registry(Registry { url: url.to_owned(), image: Some(format!("{url}:1.0-a@{image}")) });
        let existing = existing.map(|id| CloudId::new(id).unwrap());
        bench.provider.lower(&Component { name: "registry".parse().unwrap(), existing, part }, &site())
    };
    let wanted = pushed(&format!("{own}/textnlp"), None).unwrap();
    assert_eq!(wanted[0].spec.get("images"), Some(&json!([format!("1.0-a@{image}")])));
    for (url, existing) in [("registry.example.com/textnlp", None), (&format!("{own}/textnlp"), Some("textnlp"))] {
        let problems = pushed(url, existing).unwrap_err().0;
        assert!(problems.iter().any(|problem| problem.fix.contains("sites[].cluster.image")), "{problems:?}");
    }
    let part = ComponentSpec::Registry(Registry { url: format!("{own}/textnlp"), image: None });
    let component = Component { name: "registry".parse().unwrap(), existing: None, part };
    lowers_purely(&bench.provider, &component, &site()).unwrap();
}
