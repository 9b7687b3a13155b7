//! Artifact Registry: repositories, and the registry itself, to which images are pushed.

use serde_json::json;

use super::Handler;
use super::cloud::{Cloud, Family};
use super::kinds::{Id, KIND, Kind, Update};
use super::problem::Problem;
use crate::aws::protocol::{Reply, Request};
use crate::oci::{self, Does, Grant};
use crate::{Behaviour, Source};

pub(crate) const KINDS: &[Kind] = &[REPOSITORIES, IMAGES];

/// What was pushed.
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
    deleted: |cloud, key, _| {
        let images = format!("{key}/dockerImages/");
        cloud.objects.retain(|one, _| !one.starts_with(&images));
        let parts: Vec<&str> = key.split('/').collect();
        if let [_, _, project, _, _, _, id] = parts[..] {
            let pushed = format!("{project}/{id}/");
            cloud.registry.repositories.retain(|name, _| !name.starts_with(&pushed));
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

/// Answers a request of the registry of images: `/v2/…`. `user` tells who an access token stands for.
pub(crate) fn answer(cloud: &mut Cloud, request: &Request, user: impl Fn(&str) -> Option<String>) -> Reply {
    let unknown = || oci::refused(404, "NAME_UNKNOWN");
    if request.path == "/v2/token" {
        let account = oci::basic(request).filter(|(name, _)| name == "oauth2accesstoken");
        let Some(user) = account.and_then(|(_, token)| user(&token)) else { return oci::refused(401, "UNAUTHORIZED") };
        let token = cloud.random.hex(40);
        let grant = Grant { user, registry: String::new(), scopes: oci::scopes(&request.query) };
        cloud.registry.give(&token, grant);
        return oci::token("token", &token);
    }
    let asked = match oci::asked(&request.method, &request.path) {
        Some(Ok(asked)) => asked,
        Some(Err(refused)) => return refused,
        None => return unknown(),
    };
    let host = request.header("host").unwrap_or_default();
    if asked.does == Does::SendPart {
        return oci::refused(405, "UNSUPPORTED");
    }
    let grant = cloud.registry.granted(request, asked.repository, asked.does.action());
    let Some(user) = grant.map(|grant| grant.user.clone()) else {
        return oci::challenged(&format!("Bearer realm=\"http://{host}/v2/token\""));
    };
    let parts: Vec<&str> = asked.repository.splitn(3, '/').collect();
    let [project, name, image] = parts[..] else { return unknown() };
    let of_project = format!("artifactregistry/projects/{project}/locations/");
    let is_it = |key: &&String| {
        let place = key.strip_prefix(&of_project).and_then(|rest| rest.split_once("/repositories/"));
        place.is_some_and(|(_, one)| one == name)
    };
    let Some(key) = cloud.objects.keys().find(is_it).cloned() else { return unknown() };
    let is_known =
        cloud.registry.repositories.get(asked.repository).is_some_and(|one| one.images.contains_key(asked.which));
    let needed: &[&str] = match asked.does {
        Does::FindBlob | Does::ReadManifest => &["artifactregistry.repositories.downloadArtifacts"],
        Does::BeginUpload | Does::SendPart | Does::SendBlob => &["artifactregistry.repositories.uploadArtifacts"],
        Does::SendManifest if is_known => {
            &["artifactregistry.repositories.uploadArtifacts", "artifactregistry.tags.update"]
        }
        Does::SendManifest => &["artifactregistry.repositories.uploadArtifacts", "artifactregistry.tags.create"],
    };
    if needed.iter().any(|permission| !cloud.authorize(&user, project, permission)) {
        return oci::refused(403, "DENIED");
    }
    let is_immutable =
        cloud.get(&key).is_some_and(|body| body.pointer("/dockerConfig/immutableTags") == Some(&json!(true)));
    let repository = cloud.registry.repositories.entry(asked.repository.to_owned()).or_default();
    let reply = repository.answer(asked, request, is_immutable);
    let digest = repository.images.get(asked.which).cloned();
    if let Some(digest) = digest.filter(|_| asked.does == Does::SendManifest && reply.status < 300) {
        put_image(cloud, key.trim_start_matches("artifactregistry/"), image, asked.which, &digest);
    }
    reply
}

pub(crate) const HANDLERS: &[(&str, Handler)] =
    &[("artifactregistry.projects.locations.operations.get", super::kinds::operation)];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a repository is deleted with its images",
        Source::Documentation("https://cloud.google.com/artifact-registry/docs/repositories/delete-repo"),
    ),
    rule("a creation and a deletion answer operations, an update the repository", Source::Model),
    rule(
        "an update takes only listed paths, and refuses an empty mask",
        Source::Report("GoogleCloudPlatform/k8s-config-connector#3862"),
    ),
    rule(
        "a registry refers to its token service, whose tokens are for the scopes that were asked for",
        Source::Documentation("https://distribution.github.io/distribution/spec/auth/token/"),
    ),
    rule(
        "the password of oauth2accesstoken is an access token",
        Source::Documentation("https://cloud.google.com/artifact-registry/docs/docker/authentication#token"),
    ),
    rule(
        "a blob is sent whole: there are no uploads in parts",
        Source::Documentation("https://cloud.google.com/artifact-registry/docs/docker/pushing-and-pulling"),
    ),
    rule(
        "a push needs uploadArtifacts, and tags.create or tags.update; a pull downloadArtifacts",
        Source::Documentation("https://cloud.google.com/artifact-registry/docs/access-control#permissions"),
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
