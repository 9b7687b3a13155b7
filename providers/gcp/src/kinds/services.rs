//! The services that a project has enabled: <https://cloud.google.com/service-usage/docs/reference/rest/v1/services>.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_provider::{Declaration, Declare, Error, ErrorKind, Identity, Kind, Result};

use super::{put, read};
use crate::api::{Api, Call};
use crate::declare::{declaration, segment};
use crate::operation::Family;
use crate::row::{Field, Rest, RestKind, Table};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The most services of one call (hashicorp/terraform-provider-google#14691).
const AT_ONCE: usize = 20;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        // A service that was enabled is usable up to ten minutes later (hashicorp/terraform-provider-google#8214).
        deadline: MINUTE.saturating_mul(20),
        permissions: &[
            read("serviceusage.services.get"),
            read("serviceusage.services.list"),
            put("serviceusage.services.enable"),
            read("serviceusage.operations.get"),
        ],
        terraform: &[],
        shared: &["services"],
        ..kind("gcp.services", "the enabled services of a project", Identity::Part)
    },
    service: "serviceusage",
    resource: &Rest::<Services>::kind(),
    refused: &[],
}];

/// The services of a project. They stay enabled: others may use them, and a service is not switched off while another needs it
/// (terraform-google-modules/terraform-google-project-factory#168).
struct Services;

#[async_trait]
impl RestKind for Services {
    const TABLE: &'static Table = &Table {
        service: Service::ServiceUsage,
        path: "projects/{project}/services",
        collection: "projects/{project}",
        items: "services",
        fields: &[Field { absent: "[]", ..Field::plain("services", "/services") }],
        in_place: &["services"],
        family: Family::LongRunning,
        retained: true,
        ..Table::USUAL
    };

    /// Terraform has a resource for each service.
    fn declarations(api: Option<&Api>, request: &Declare<'_>, main: Declaration) -> Vec<Declaration> {
        let project = segment(&main.id, "projects");
        let one = |name: &str| {
            let attributes = json!({ "project": project, "service": name, "disable_on_destroy": false });
            declaration(api, "google_project_service", &attributes, format!("{project}/{name}"), &[])
        };
        let names = request.object.spec.get("services").and_then(Value::as_array).into_iter().flatten();
        names.filter_map(Value::as_str).map(one).collect()
    }

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let query = [("filter", "state:ENABLED".to_owned())];
        let found = api.list(Service::ServiceUsage, id, "services", &query).await?;
        let name = |service: &Value| Some(textnlp_cloud::document::last(service["name"].as_str()?).to_owned());
        let names: BTreeSet<String> = found.iter().filter_map(name).collect();
        Ok(Some(json!({ "services": names })))
    }

    /// Other services of the project are its operator's.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "services" && missing(wanted, seen).is_empty()
    }

    /// Enables the missing ones, at most as many as one call takes.
    async fn put(api: &Api, id: &str, wanted: &Value, _field: &str) -> Result<Option<String>> {
        let seen = Self::fetch(api, id).await?.unwrap_or_default();
        let missing: Vec<String> = missing(wanted, &seen["services"]).into_iter().take(AT_ONCE).collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let call = Call::post(Service::ServiceUsage, format!("{id}:batchEnable"), json!({ "serviceIds": missing }));
        let answer = api.send(call.saying("enable", missing.join(", "))).await;
        // Whatever the answer was: a lost one may have enabled them.
        api.session.services_changed();
        let answer = answer.map_err(|error| match error.kind {
            ErrorKind::Denied => error.hint(crate::api::bootstrap_hint(api.project())),
            _ => error,
        })?;
        Ok(Family::LongRunning.started(api, id, &answer))
    }

    async fn end(_api: &Api, seen: &textnlp_cloud::ObservedObject<textnlp_provider::Spec>) -> Result<Option<String>> {
        let error = Error::new(ErrorKind::Invalid, "disable", seen.id.clone());
        Err(error.because("services stay enabled"))
    }
}

fn missing(wanted: &Value, seen: &Value) -> Vec<String> {
    let names = |value: &Value| -> BTreeSet<String> {
        value.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    names(wanted).difference(&names(seen)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_others_are_no_difference() {
        let wanted = json!(["compute.googleapis.com", "container.googleapis.com"]);
        assert!(Services::fits(
            "services",
            &wanted,
            &json!(["a", "compute.googleapis.com", "container.googleapis.com"])
        ));
        assert_eq!(missing(&wanted, &json!(["compute.googleapis.com"])), ["container.googleapis.com"]);
    }
}
