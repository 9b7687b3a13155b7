//! Health checks of endpoints on the internet, from three regions:
//! <https://cloud.google.com/compute/docs/reference/rest/v1/healthChecks>.

use async_trait::async_trait;
use serde_json::Value;
use textnlp_provider::{Declare, Identity, Kind, Pricing, Result};

use super::network::DESCRIPTION;
use super::{create, delete, put, read};
use crate::api::Api;
use crate::operation::Family;
use crate::row::{Field, Marks, Rest, RestKind, Table, Update};
use crate::service::Service;
use crate::table::{Row, kind};

/// The kind of health checks, which are in the project of the zone.
pub(crate) const HEALTH_CHECK: &str = "gcp.health-check";

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        pricing: Pricing::Unknown("by checked endpoints"),
        permissions: &[
            create("compute.healthChecks.create"),
            delete("compute.healthChecks.delete"),
            read("compute.healthChecks.get"),
            read("compute.healthChecks.list"),
            put("compute.healthChecks.update"),
            // No document says whether a record set needs it.
            put("compute.healthChecks.useReadOnly"),
            read("compute.globalOperations.get"),
        ],
        ..kind(HEALTH_CHECK, "a health check from the internet", Identity::Named)
    },
    service: "compute",
    resource: &Rest::<HealthCheck>::kind(),
    refused: &[],
}];

/// A health check over HTTPS. It sends the name of the service as `Host`, and accepts every certificate. Outputs: `id`, `name`.
struct HealthCheck;

#[async_trait]
impl RestKind for HealthCheck {
    const TABLE: &'static Table = &Table {
        service: Service::Compute,
        path: "projects/{project}/global/healthChecks/{name}",
        collection: "projects/{project}/global/healthChecks",
        constants: &[("/type", "\"HTTPS\"")],
        fields: &[
            Field::plain("host", "/httpsHealthCheck/host").patched(),
            Field::plain("port", "/httpsHealthCheck/port").patched(),
            Field::plain("path", "/httpsHealthCheck/requestPath").patched(),
            Field::plain("interval", "/checkIntervalSec").patched(),
            Field::plain("timeout", "/timeoutSec").patched(),
            Field::plain("failures", "/unhealthyThreshold").patched(),
            Field::plain("successes", "/healthyThreshold").patched(),
            Field::plain("regions", "/sourceRegions").patched(),
        ],
        in_place: &["host", "port", "path", "interval", "timeout", "failures", "successes", "regions"],
        update: Update::Merge(&["/type"]),
        marks: Marks::Description("/description", DESCRIPTION, true),
        family: Family::Compute,
        created: "/creationTimestamp",
        ..Table::USUAL
    };

    fn declared(_api: Option<&Api>, _request: &Declare<'_>, _document: &mut Value) -> Result<(), String> {
        Err("it is a part of the record set of several sites, which is not exported".to_owned())
    }
}
