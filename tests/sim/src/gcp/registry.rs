//! Artifact Registry: repositories.

use serde_json::json;

use super::Handler;
use super::cloud::{Cloud, Family};
use super::kinds::{Id, KIND, Kind, Update};
use super::problem::Problem;
use crate::{Behaviour, Source};

pub(crate) const KINDS: &[Kind] = &[REPOSITORIES, IMAGES];

/// What was pushed: the registry is not simulated.
const IMAGES: Kind = Kind {
    methods: "artifactregistry.projects.locations.repositories.dockerImages",
    verbs: &["get", "list"],
    collection: ("artifactregistry", "dockerImages"),
    items: "dockerImages",
    ..KIND
};

const REPOSITORIES: Kind = Kind {
    methods: "artifactregistry.projects.locations.repositories",
    verbs: &["create", "get", "list", "patch", "delete"],
    collection: ("artifactregistry", "repositories"),
    id: Id::Query("repositoryId"),
    items: "repositories",
    family: Some(Family::LongRunning),
    message: (
        "google.devtools.artifactregistry.v1.Repository",
        "google.devtools.artifactregistry.v1.OperationMetadata",
    ),
    seconds: (10, 0, 20),
    defaults: &[("/mode", "\"STANDARD_REPOSITORY\"")],
    update: Update::Mask(&[
        "labels",
        "description",
        "cleanupPolicies",
        "cleanupPolicyDryRun",
        "dockerConfig",
        "vulnerabilityScanningConfig",
    ]),
    check: |_, _, body| match body["format"].as_str() {
        None | Some("FORMAT_UNSPECIFIED") => {
            Err(Problem::new("INVALID_ARGUMENT", "The repository's format is missing."))
        }
        Some(_) => Ok(()),
    },
    fill: |cloud, _, name, body| {
        body["name"] = name.into();
        let now = cloud.now().to_string();
        body["createTime"] = now.clone().into();
        body["updateTime"] = now.into();
        body["sizeBytes"] = "0".into();
        let parts: Vec<&str> = name.split('/').collect();
        if let [_, project, _, location, _, id] = parts[..] {
            let format = body["format"].as_str().unwrap_or_default().to_lowercase();
            body["registryUri"] = json!(format!("{location}-{format}.pkg.dev/{project}/{id}"));
        }
    },
    ..KIND
};

/// Puts an image into a repository, as a push does.
pub(crate) fn put_image(cloud: &mut Cloud, repository: &str, image: &str, tag: &str, digest: &str) {
    let parts: Vec<&str> = repository.split('/').collect();
    let [_, project, _, location, _, name] = parts[..] else { return };
    let uri = format!("{location}-docker.pkg.dev/{project}/{name}/{image}@{digest}");
    let path = format!("{repository}/dockerImages/{image}@{digest}");
    let now = cloud.now().to_string();
    let body = json!({ "name": path, "uri": uri, "tags": [tag], "uploadTime": now, "updateTime": now,
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "imageSizeBytes": "1" });
    cloud.put(&format!("artifactregistry/{path}"), body);
}

pub(crate) const HANDLERS: &[(&str, Handler)] =
    &[("artifactregistry.projects.locations.operations.get", super::kinds::operation)];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule("a creation and a deletion answer operations, an update the repository", Source::Model),
    rule(
        "an update takes only listed paths, and refuses an empty mask",
        Source::Report("GoogleCloudPlatform/k8s-config-connector#3862"),
    ),
    rule(
        "the mode is STANDARD_REPOSITORY unless set",
        Source::Documentation(
            "https://cloud.google.com/artifact-registry/docs/reference/rest/v1/projects.locations.repositories",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "artifactregistry", what, source }
}
