//! Repositories of Artifact Registry:
//! <https://cloud.google.com/artifact-registry/docs/reference/rest/v1/projects.locations.repositories>.

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_cloud::document::{get, set};
use textnlp_cloud::tags::LINEAGE;
use textnlp_cloud::{ImageTarget, State, has_images, lacking};
use textnlp_provider::{DataClass, Declare, Identity, Kind, Outputs, Pricing, Result};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::declare::{ID, NAME, Terraform};
use crate::operation::Family;
use crate::row::{Create, Field, Labelling, Marks, Rest, RestKind, Table, fetch_all};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The name of the rule that removes images without a tag.
const UNTAGGED: &str = "untagged";
/// Where the images of a repository are put in its document.
const IMAGES: &str = "/$images";
/// The user of the registry whose password is an access token
/// (<https://cloud.google.com/artifact-registry/docs/docker/authentication#token>).
const USER: &str = "oauth2accesstoken";
/// The seconds of a day.
const DAY: u64 = 86_400;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        data: DataClass::Precious,
        pricing: Pricing::BySpec,
        // The upload is over the operator's own network.
        deadline: MINUTE.saturating_mul(60),
        permissions: &[
            create("artifactregistry.repositories.create"),
            delete("artifactregistry.repositories.delete"),
            read("artifactregistry.repositories.get"),
            read("artifactregistry.repositories.list"),
            put("artifactregistry.repositories.update"),
            read("artifactregistry.dockerimages.list"),
            put("artifactregistry.repositories.downloadArtifacts"),
            put("artifactregistry.repositories.uploadArtifacts"),
            put("artifactregistry.tags.create"),
            put("artifactregistry.tags.update"),
        ],
        terraform: &[("google_artifact_registry_repository", "id")],
        ..kind("gcp.repository", "a repository of images", Identity::Named)
    },
    service: "artifactregistry",
    resource: &Rest::<Repository>::kind(),
    refused: &[("key", "a repository keeps its key: let the key rotate instead")],
}];

/// A repository of container images. Outputs: `id`, `name`, `address`.
struct Repository;

#[async_trait]
impl RestKind for Repository {
    const TABLE: &'static Table = &Table {
        service: Service::ArtifactRegistry,
        path: "projects/{project}/locations/{location}/repositories/{name}",
        collection: "projects/{project}/locations/{location}/repositories",
        items: "repositories",
        create: Create::Query("repositoryId"),
        constants: &[("/format", "\"DOCKER\"")],
        fields: &[
            Field::flag("immutable", "/dockerConfig/immutableTags").patched(),
            Field::code("untagged_days", "/cleanupPolicies", policies, untagged).patched(),
            Field::plain("key", "/kmsKeyName"),
            // Images with a tag: `IMAGE:TAG@sha256:…`. There may be more than the wanted ones.
            Field { seen: IMAGES, absent: "[]", ..Field::plain("images", "") },
        ],
        in_place: &["immutable", "untagged_days", "images"],
        marks: Marks::Labels("/labels", Labelling::Patch),
        family: Family::LongRunning,
        terraform: Terraform {
            kind: "google_artifact_registry_repository",
            named: &[("project", "/project"), ("location", "/location"), ("name", "/repository_id")],
            outputs: &[ID, NAME],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        match api.find_enabled(Call::get(Service::ArtifactRegistry, id)).await? {
            Some(repository) => Ok(Some(with_images(api, id, repository).await?)),
            None => Ok(None),
        }
    }

    async fn fetch_all(api: &Api) -> Result<Vec<(String, Value)>> {
        let mut all = fetch_all(api, Self::TABLE).await?;
        // Repositories of other formats and of other programs are listed too.
        let is_own = |one: &Value| one["format"] == "DOCKER" && one["labels"].to_string().contains(LINEAGE);
        for (id, repository) in all.iter_mut().filter(|(_, one)| is_own(one)) {
            *repository = with_images(api, id, std::mem::take(repository)).await?;
        }
        Ok(all)
    }

    /// Policies are a list of blocks.
    fn declared(_api: Option<&Api>, _request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        let policies = document["cleanupPolicies"].as_object().into_iter().flatten();
        document["cleanupPolicies"] = policies.map(|(_, policy)| policy.clone()).collect::<Vec<_>>().into();
        Ok(())
    }

    fn outputs(id: &str, _document: &Value, outputs: &mut Outputs) {
        if let Some((host, path)) = address(id) {
            outputs.insert("address".to_owned(), json!(format!("{host}/{path}")));
        }
    }

    /// Images of earlier releases and those that others pushed stay.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "images" && has_images(seen, wanted)
    }

    /// The image is sent in the background: it takes longer than a call may.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<String>> {
        let seen = Self::fetch(api, id).await?.unwrap_or_default();
        let seen: Vec<String> =
            get(&seen, IMAGES).cloned().map(serde_json::from_value).and_then(Result::ok).unwrap_or_default();
        let Some((named, digest)) = lacking(&seen, wanted) else { return Ok(None) };
        let (Some((name, tag)), Some((host, path)), "images") = (named.rsplit_once(':'), address(id), field) else {
            return Err(crate::row::invalid("change", id, &format!("`{field}` does not change in place")));
        };
        let target = ImageTarget {
            registry: api.registry(&host),
            user: USER.to_owned(),
            password: api.session.tokens.bearer().await?.token,
            repository: format!("{path}/{name}"),
            tag: tag.to_owned(),
            digest: digest.to_owned(),
        };
        api.session.images.push(target).map(Some)
    }

    async fn change(api: &Api, _id: &str, change: &str) -> Result<State> {
        match change.contains("@sha256:") {
            true => api.session.images.state(change),
            false => Self::TABLE.family.state(api, Self::TABLE.service, change).await,
        }
    }
}

/// The host of a repository and its path there.
fn address(id: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = id.split('/').collect();
    let [_, project, _, location, _, name] = parts.as_slice() else { return None };
    Some((format!("{location}-docker.pkg.dev"), format!("{project}/{name}")))
}

/// A repository with the images in it that have tags.
async fn with_images(api: &Api, id: &str, mut repository: Value) -> Result<Value> {
    let path = format!("{id}/dockerImages");
    let found = api.list(Service::ArtifactRegistry, &path, "dockerImages", &[]).await?;
    let mut images: Vec<String> = found.iter().filter_map(image).collect();
    images.sort();
    set(&mut repository, IMAGES, images.into());
    Ok(repository)
}

/// `IMAGE:TAG@sha256:…` of an image whose uri is `HOST/PROJECT/REPOSITORY/IMAGE@sha256:…`.
fn image(document: &Value) -> Option<String> {
    let (name, digest) = document["uri"].as_str()?.split_once('@')?;
    let (name, tag) = (name.splitn(4, '/').nth(3)?, document["tags"][0].as_str()?);
    Some(format!("{name}:{tag}@{digest}"))
}

fn policies(days: &Value) -> Value {
    let Some(days) = days.as_u64() else { return json!({}) };
    let older = format!("{}s", days.saturating_mul(DAY));
    let condition = json!({ "tagState": "UNTAGGED", "olderThan": older });
    json!({ UNTAGGED: { "id": UNTAGGED, "action": "DELETE", "condition": condition } })
}

fn untagged(document: &Value) -> Value {
    let older = document["cleanupPolicies"][UNTAGGED]["condition"]["olderThan"].as_str();
    let seconds = older.and_then(|text| text.trim_end_matches('s').parse::<u64>().ok());
    seconds.map_or(Value::Null, |seconds| json!(seconds / DAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_they_are_written() {
        for days in [json!(14), Value::Null] {
            assert_eq!(untagged(&json!({ "cleanupPolicies": policies(&days) })), days);
        }
        let mut outputs = Outputs::new();
        Repository::outputs(
            "projects/my-project/locations/europe-west4/repositories/textnlp",
            &Value::Null,
            &mut outputs,
        );
        assert_eq!(outputs["address"], json!("europe-west4-docker.pkg.dev/my-project/textnlp"));
    }
}
