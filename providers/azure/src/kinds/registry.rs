//! Registries of images: <https://learn.microsoft.com/rest/api/containerregistry/>.

use textnlp_provider::{DataClass, Identity, Kind, Pricing};

use super::{delete, put, read};
use crate::row::{Field, LOCATION, Rest, RestKind, Table, Update};
use crate::table::{Row, kind};

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        data: DataClass::Precious,
        pricing: Pricing::BySpec,
        permissions: &[
            read("Microsoft.ContainerRegistry/registries/read"),
            put("Microsoft.ContainerRegistry/registries/write"),
            delete("Microsoft.ContainerRegistry/registries/delete"),
            read("Microsoft.ContainerRegistry/registries/operationStatuses/read"),
            read("Microsoft.ContainerRegistry/locations/operationResults/read"),
            read("Microsoft.ContainerRegistry/checkNameAvailability/read"),
        ],
        terraform: &[("azurerm_container_registry", "id")],
        ..kind("azure.registry", "a registry of images", Identity::Named)
    },
    service: "Microsoft.ContainerRegistry",
    resource: &Rest::<Registry>::kind(),
    refused: &[("location", "a registry stays where it is: push its images to another one")],
}];

/// A registry without an administrator's password. Outputs: `id`, `name`, `host`.
struct Registry;

impl RestKind for Registry {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.ContainerRegistry/registries",
        version: "2023-07-01",
        path: "{group}/providers/Microsoft.ContainerRegistry/registries/{name}",
        constants: &[("/properties/adminUserEnabled", "false")],
        fields: &[LOCATION, Field::plain("sku", "/sku/name").changed()],
        in_place: &["sku"],
        update: Update::Patch,
        outputs: &[("host", "/properties/loginServer")],
        ..Table::USUAL
    };
}
