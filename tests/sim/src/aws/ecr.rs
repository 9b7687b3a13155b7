//! Elastic Container Registry: its repositories, and the registry that images are pushed to. Of layers only the sizes are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::kms;
use super::protocol::{Reply, Request};
use crate::oci::{self, Does};
use crate::{Behaviour, Call, Fault, Quota, Scope, Service, Source, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "ecr",
    model: "ecr",
    operations: &[
        ("CreateRepository", create),
        ("DeleteLifecyclePolicy", delete_lifecycle),
        ("DeleteRepository", delete),
        ("DescribeRepositories", describe),
        ("GetAuthorizationToken", get_authorization_token),
        ("GetLifecyclePolicy", get_lifecycle),
        ("ListImages", list_images),
        ("ListTagsForResource", list_tags),
        ("PutImage", put_image),
        ("PutImageScanningConfiguration", put_scanning),
        ("PutImageTagMutability", put_mutability),
        ("PutLifecyclePolicy", put_lifecycle),
        ("TagResource", tag),
        ("UntagResource", untag),
    ],
    quotas: &[REPOSITORIES],
    ledger: LEDGER,
};

/// Repositories of a region.
const REPOSITORIES: Quota =
    Quota { service: "ecr", code: "L-CFEB8E8D", name: "Registered repositories", value: 100_000.0, adjustable: true };

const API: &str = "https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_Operations.html";

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "ecr",
        what: "RepositoryAlreadyExistsException, RepositoryNotFoundException, LifecyclePolicyNotFoundException, and \
               RepositoryNotEmptyException without force",
        source: Source::Documentation(API),
    },
    Behaviour {
        service: "ecr",
        what: "a tag of an immutable repository is not pushed again: ImageTagAlreadyExistsException",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonECR/latest/userguide/image-tag-mutability.html",
        ),
    },
    Behaviour {
        service: "ecr",
        what: "a repository is not created with a key that does not exist or waits for its deletion: KmsException",
        source: Source::Documentation(API),
    },
    Behaviour {
        service: "ecr",
        what: "a lifecycle policy needs rules with rulePriority, selection and action, and distinct priorities",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonECR/latest/userguide/lifecycle_policy_parameters.html",
        ),
    },
    Behaviour {
        service: "ecr",
        what: "PutImage does not ask for the layers of the image",
        source: Source::LeftOut("images are pushed by the registry's protocol, which asks for them"),
    },
    Behaviour {
        service: "ecr",
        what: "GetAuthorizationToken gives `AWS:` and a password for twelve hours, which the registry takes as Basic authentication",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_GetAuthorizationToken.html",
        ),
    },
    Behaviour {
        service: "ecr",
        what: "the registry takes blobs by POST and PUT, compares their digests, and takes a manifest whose blobs it has",
        source: Source::Documentation("https://github.com/opencontainers/distribution-spec/blob/main/spec.md"),
    },
    Behaviour {
        service: "ecr",
        what: "the registry names its errors as the distribution specification does, and a tag of an immutable repository is TAG_INVALID",
        source: Source::Report("osscontainertools/kaniko#204"),
    },
];

/// What ECR holds in a region.
#[derive(Default)]
pub struct Ecr {
    /// The repositories by their names.
    pub repositories: BTreeMap<String, Repository>,
    /// The passwords of the registry, and when they end.
    passwords: BTreeMap<String, Timestamp>,
}

/// A repository.
pub struct Repository {
    /// What was pushed.
    pub pushed: oci::Repository,
    created: Timestamp,
    mutability: String,
    scan_on_push: bool,
    encryption: Value,
    lifecycle: Option<String>,
}

fn not_found(call: &Call, name: &str) -> Fault {
    let message =
        format!("The repository with name '{name}' does not exist in the registry with id '{}'", call.account);
    Fault::new("RepositoryNotFoundException", message)
}

fn find<'a>(world: &'a mut World, call: &Call, name: &str) -> Result<&'a mut Repository, Fault> {
    world.state::<Ecr>(&call.scope()).repositories.get_mut(name).ok_or_else(|| not_found(call, name))
}

fn shown(call: &Call, name: &str, repository: &Repository) -> Value {
    json!({
        "repositoryArn": call.arn(&format!("repository/{name}")),
        "registryId": call.account,
        "repositoryName": name,
        "repositoryUri": format!("{}.dkr.ecr.{}.amazonaws.com/{name}", call.account, call.region),
        "createdAt": timestamp(repository.created),
        "imageTagMutability": repository.mutability,
        "imageScanningConfiguration": { "scanOnPush": repository.scan_on_push },
        "encryptionConfiguration": repository.encryption,
    })
}

fn pairs(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let text = |tag: &Value, member: &str| tag[member].as_str().unwrap_or_default().to_owned();
    let pairs: Vec<_> = call.list("tags").iter().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect();
    match pairs.iter().any(|(key, _)| key.is_empty() || key.starts_with("aws:")) {
        true => Err(Fault::new("InvalidTagParameterException", "Tag keys may not begin with aws:")),
        false => Ok(pairs),
    }
}

fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("repositoryName");
    let tags = pairs(call)?;
    let mut encryption = call.input.get("encryptionConfiguration").cloned();
    if let Some(encryption) = encryption.as_mut().filter(|one| one["encryptionType"] == "KMS") {
        let asked = encryption["kmsKey"].as_str().unwrap_or("alias/aws/ecr").to_owned();
        let key = kms::key(world, &call.scope(), &asked).filter(|key| key.state() == "Enabled");
        match key {
            Some(key) => encryption["kmsKey"] = key.arn.clone().into(),
            None if asked == "alias/aws/ecr" => {}
            None => return Err(Fault::new("KmsException", format!("The key {asked} cannot be used."))),
        }
    }
    let limit = world.quotas.of(&call.scope(), &REPOSITORIES);
    let repositories = &mut world.state::<Ecr>(&call.scope()).repositories;
    if repositories.contains_key(name) {
        let message =
            format!("The repository with name '{name}' already exists in the registry with id '{}'", call.account);
        return Err(Fault::new("RepositoryAlreadyExistsException", message));
    }
    if repositories.len() as f64 >= limit {
        return Err(Fault::new("LimitExceededException", "The number of repositories reached its limit."));
    }
    let repository = Repository {
        pushed: oci::Repository::default(),
        created: call.now,
        mutability: call.str("imageTagMutability").unwrap_or("MUTABLE").to_owned(),
        scan_on_push: call.input["imageScanningConfiguration"]["scanOnPush"].as_bool().unwrap_or_default(),
        encryption: encryption.unwrap_or_else(|| json!({ "encryptionType": "AES256" })),
        lifecycle: None,
    };
    let answer = json!({ "repository": shown(call, name, &repository) });
    repositories.insert(name.to_owned(), repository);
    world.tags.set(&call.arn(&format!("repository/{name}")), tags, call.visible());
    Ok(answer)
}

fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let names = call.texts("repositoryNames");
    let repositories = &world.state::<Ecr>(&call.scope()).repositories;
    if let Some(unknown) = names.iter().find(|name| !repositories.contains_key(**name)) {
        return Err(not_found(call, unknown));
    }
    let all = repositories.iter().filter(|(name, _)| names.is_empty() || names.contains(&name.as_str()));
    let all = all.map(|(name, repository)| shown(call, name, repository)).collect();
    call.page("repositories", all, Fault::new("InvalidParameterException", "The token is not valid."))
}

fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("repositoryName");
    let repository = find(world, call, name)?;
    if !repository.pushed.images.is_empty() && !call.is("force") {
        let message = format!(
            "The repository with name '{name}' in registry with id '{}' cannot be deleted because it still contains images",
            call.account
        );
        return Err(Fault::new("RepositoryNotEmptyException", message));
    }
    let mut answer = shown(call, name, repository);
    // Only what identifies it is answered.
    if let Some(members) = answer.as_object_mut() {
        members
            .retain(|member, _| !["imageScanningConfiguration", "encryptionConfiguration"].contains(&member.as_str()));
    }
    world.state::<Ecr>(&call.scope()).repositories.remove(name);
    world.tags.forget(&call.arn(&format!("repository/{name}")));
    Ok(json!({ "repository": answer }))
}

fn put_mutability(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (name, wanted) = (call.text("repositoryName"), call.text("imageTagMutability"));
    find(world, call, name)?.mutability = wanted.to_owned();
    Ok(json!({ "registryId": call.account, "repositoryName": name, "imageTagMutability": wanted }))
}

fn put_scanning(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("repositoryName");
    let scan = call.input["imageScanningConfiguration"]["scanOnPush"].as_bool().unwrap_or_default();
    find(world, call, name)?.scan_on_push = scan;
    let scanning = json!({ "scanOnPush": scan });
    Ok(json!({ "registryId": call.account, "repositoryName": name, "imageScanningConfiguration": scanning }))
}

fn lifecycle_answer(call: &Call, text: &str) -> Value {
    json!({ "registryId": call.account, "repositoryName": call.text("repositoryName"), "lifecyclePolicyText": text })
}

fn no_lifecycle(call: &Call) -> Fault {
    let message =
        format!("Lifecycle policy does not exist for the repository with name '{}'", call.text("repositoryName"));
    Fault::new("LifecyclePolicyNotFoundException", message)
}

fn get_lifecycle(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let text = find(world, call, call.text("repositoryName"))?.lifecycle.clone();
    text.map(|text| lifecycle_answer(call, &text)).ok_or_else(|| no_lifecycle(call))
}

fn put_lifecycle(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let text = call.text("lifecyclePolicyText");
    let invalid = || Fault::new("InvalidParameterException", "Lifecycle policy validation failure");
    let policy: Value = serde_json::from_str(text).map_err(|_| invalid())?;
    let rules = policy["rules"].as_array().filter(|rules| !rules.is_empty()).ok_or_else(invalid)?;
    let mut priorities = std::collections::BTreeSet::new();
    for rule in rules {
        let selection = &rule["selection"];
        let is_complete = selection["tagStatus"].is_string()
            && selection["countType"].is_string()
            && selection["countNumber"].as_u64().is_some_and(|count| count > 0)
            && rule["action"]["type"] == "expire";
        let needs_unit = selection["countType"] == "sinceImagePushed";
        let has_unit = selection["countUnit"] == "days";
        let priority = rule["rulePriority"].as_u64().filter(|priority| *priority > 0).ok_or_else(invalid)?;
        if !is_complete || needs_unit != has_unit || !priorities.insert(priority) {
            return Err(invalid());
        }
    }
    find(world, call, call.text("repositoryName"))?.lifecycle = Some(text.to_owned());
    Ok(lifecycle_answer(call, text))
}

fn delete_lifecycle(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let text = find(world, call, call.text("repositoryName"))?.lifecycle.take();
    text.map(|text| lifecycle_answer(call, &text)).ok_or_else(|| no_lifecycle(call))
}

fn put_image(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("repositoryName");
    let manifest = call.text("imageManifest");
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(manifest.as_bytes())));
    let tag = call.str("imageTag").unwrap_or(&digest).to_owned();
    let repository = find(world, call, name)?;
    if let Some(known) = repository.pushed.images.get(&tag) {
        let code = if *known == digest { "ImageAlreadyExistsException" } else { "ImageTagAlreadyExistsException" };
        if *known == digest || repository.mutability == "IMMUTABLE" {
            let message = format!("The image tag '{tag}' already exists in the '{name}' repository");
            return Err(Fault::new(code, message));
        }
    }
    repository.pushed.images.insert(tag.clone(), digest.clone());
    let id = json!({ "imageDigest": digest, "imageTag": tag });
    let image = json!({ "registryId": call.account, "repositoryName": name, "imageId": id, "imageManifest": manifest });
    Ok(json!({ "image": image }))
}

fn get_authorization_token(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (password, ends) = (call.random.hex(64), call.now + PASSWORD);
    world.state::<Ecr>(&call.scope()).passwords.insert(password.clone(), ends);
    let token = STANDARD.encode(format!("AWS:{password}"));
    let registry = format!("http://{}", call.host);
    let data = json!({ "authorizationToken": token, "expiresAt": timestamp(ends), "proxyEndpoint": registry });
    Ok(json!({ "authorizationData": [data] }))
}

fn list_images(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let images = &find(world, call, call.text("repositoryName"))?.pushed.images;
    let images = images.iter().filter(|_| call.input["filter"]["tagStatus"] != "UNTAGGED");
    let images = images.map(|(tag, digest)| json!({ "imageTag": tag, "imageDigest": digest })).collect();
    let mut page = call.page("imageIds", images, Fault::new("InvalidParameterException", "The token is not valid."))?;
    // The model allows no empty list.
    if let Some(members) = page.as_object_mut().filter(|members| members["imageIds"] == json!([])) {
        members.remove("imageIds");
    }
    Ok(page)
}

/// How long a password of the registry is valid.
const PASSWORD: Duration = Duration::from_secs(12 * 3600);

/// Answers a request of the registry, which is not one of ECR's API: its action of IAM, and the reply. `None` if it is none.
pub(crate) fn registry(world: &mut World, request: &Request) -> Option<(&'static str, Reply)> {
    let asked = oci::asked(&request.method, &request.path)?;
    let now = world.now();
    let password = oci::basic(request).filter(|(user, _)| user == "AWS").map(|(_, password)| password);
    let known = password.and_then(|password| {
        let is_valid = |scope: &Scope| {
            let ends = world.find::<Ecr>(scope).and_then(|ecr| ecr.passwords.get(&password));
            ends.is_some_and(|ends| *ends > now)
        };
        world.scopes::<Ecr>().into_iter().find(is_valid)
    });
    let Some(scope) = known else {
        return Some(("", oci::challenged("Basic realm=\"ecr\",service=\"ecr.amazonaws.com\"")));
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(refused) => return Some(("", refused)),
    };
    let Some(repository) = world.state::<Ecr>(&scope).repositories.get_mut(asked.repository) else {
        return Some(("", oci::refused(404, "NAME_UNKNOWN")));
    };
    let action = match asked.does {
        Does::FindBlob => "BatchCheckLayerAvailability",
        Does::BeginUpload => "InitiateLayerUpload",
        Does::SendPart => "UploadLayerPart",
        Does::SendBlob => "CompleteLayerUpload",
        Does::SendManifest => "PutImage",
        Does::ReadManifest => "BatchGetImage",
    };
    let is_immutable = repository.mutability == "IMMUTABLE";
    Some((action, repository.pushed.answer(asked, request, is_immutable)))
}

/// The ARN of the input, if there is such a repository.
fn arn(world: &mut World, call: &Call) -> Result<String, Fault> {
    let arn = call.text("resourceArn");
    let name = arn.strip_prefix(call.arn("repository/").as_str()).unwrap_or(arn).to_owned();
    find(world, call, &name).map(|_| arn.to_owned())
}

fn list_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = arn(world, call)?;
    let tags = world.tags.of(&arn).into_iter().map(|(key, value)| json!({ "Key": key, "Value": value }));
    Ok(json!({ "tags": tags.collect::<Vec<_>>() }))
}

fn tag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = pairs(call)?;
    let arn = arn(world, call)?;
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({}))
}

fn untag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = arn(world, call)?;
    world.tags.remove(&arn, call.texts("tagKeys"));
    Ok(json!({}))
}
