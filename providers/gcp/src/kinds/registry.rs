//! Repositories of Artifact Registry:
//! <https://cloud.google.com/artifact-registry/docs/reference/rest/v1/projects.locations.repositories>.

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_provider::{DataClass, Identity, Kind, Outputs, Pricing};

use super::{create, delete, put, read};
use crate::operation::Family;
use crate::row::{Create, Field, Labelling, Marks, Rest, RestKind, Table};
use crate::service::Service;
use crate::table::{Row, kind};

/// The name of the rule that removes images without a tag.
const UNTAGGED: &str = "untagged";
/// The seconds of a day.
const DAY: u64 = 86_400;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        data: DataClass::Precious,
        pricing: Pricing::BySpec,
        permissions: &[
            create("artifactregistry.repositories.create"),
            delete("artifactregistry.repositories.delete"),
            read("artifactregistry.repositories.get"),
            read("artifactregistry.repositories.list"),
            put("artifactregistry.repositories.update"),
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
        ],
        in_place: &["immutable", "untagged_days"],
        marks: Marks::Labels("/labels", Labelling::Patch),
        family: Family::LongRunning,
        ..Table::USUAL
    };

    fn outputs(id: &str, _document: &Value, outputs: &mut Outputs) {
        let parts: Vec<&str> = id.split('/').collect();
        if let [_, project, _, location, _, name] = parts.as_slice() {
            outputs.insert("address".to_owned(), json!(format!("{location}-docker.pkg.dev/{project}/{name}")));
        }
    }
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
