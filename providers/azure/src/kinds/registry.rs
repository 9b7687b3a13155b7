//! Registries of images, and the images that are pushed: <https://learn.microsoft.com/rest/api/containerregistry/>.

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_cloud::document::get;
use textnlp_cloud::{State, has_images, lacking};
use textnlp_provider::ErrorKind::{Conflict, Denied, NotFound, Unavailable};
use textnlp_provider::{DataClass, Error, Identity, Kind, Pricing, Result};

use super::{delete, put, read};
use crate::api::{Api, Call, Reply};
use crate::images::Repository;
use crate::operation::Pending;
use crate::row::{Field, LOCATION, Marks, Rest, RestKind, Table, Update, invalid};
use crate::table::{MINUTE, Row, kind};

const VERSION: &str = "2023-07-01";
/// Where the images of a repository are in its document.
const IMAGES: &str = "/images";

pub(crate) static ROWS: &[Row] = &[
    Row {
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
    },
    Row {
        kind: Kind {
            // The upload is over the operator's own network.
            deadline: MINUTE.saturating_mul(60),
            permissions: &[
                read("Microsoft.ContainerRegistry/registries/read"),
                read("Microsoft.ContainerRegistry/registries/metadata/read"),
                put("Microsoft.ContainerRegistry/registries/pull/read"),
                put("Microsoft.ContainerRegistry/registries/push/write"),
            ],
            ..kind("azure.repository", "the images of the servers in a registry", Identity::Part)
        },
        service: "Microsoft.ContainerRegistry",
        resource: &Rest::<Images>::kind(),
        refused: &[],
    },
];

/// A registry without an administrator's password. Outputs: `id`, `name`, `host`.
struct Registry;

impl RestKind for Registry {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.ContainerRegistry/registries",
        version: VERSION,
        path: "{group}/providers/Microsoft.ContainerRegistry/registries/{name}",
        constants: &[("/properties/adminUserEnabled", "false")],
        fields: &[LOCATION, Field::plain("sku", "/sku/name").changed()],
        in_place: &["sku"],
        update: Update::Patch,
        outputs: &[("host", "/properties/loginServer")],
        ..Table::USUAL
    };
}

/// A repository, which is there as long as its registry is; the first push to it makes it. Its name may have slashes, so that a
/// colon is before it in its id, which is none of Azure Resource Manager. Outputs: `id`, `name`.
struct Images;

#[async_trait]
impl RestKind for Images {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.ContainerRegistry/registries/repositories",
        version: VERSION,
        path: "{registry}:{name}",
        // `TAG@sha256:…`. There may be more than the wanted ones.
        fields: &[Field { absent: "[]", ..Field::plain("images", IMAGES) }],
        in_place: &["images"],
        marks: Marks::Part,
        retained: true,
        undeclared: Some("images are pushed to the registry, which is declared"),
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let Some(found) = address(api, id).await? else { return Ok(None) };
        let images = match Repository::new(&api.session, &found.host, found.name).images().await {
            // Nothing is known of it from here. A push is refused, and says so.
            Err(error) if found.is_closed && matches!(error.kind, Denied | Unavailable | Conflict) => Vec::new(),
            images => images?,
        };
        Ok(Some(json!({ "images": images })))
    }

    /// Images of earlier releases and those that others pushed stay.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "images" && has_images(seen, wanted)
    }

    /// The push that a new repository begins with.
    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        let wanted = get(&document, IMAGES).cloned().unwrap_or_default();
        let pending = Self::put(api, id, &wanted, "images").await?;
        Ok(Reply { status: 202, body: Value::Null, pending })
    }

    /// The image is sent in the background: it takes longer than a call may.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<Pending>> {
        let Some(Address { host, name, .. }) = address(api, id).await? else {
            return Err(Error::new(NotFound, "push", id).because("the registry does not exist"));
        };
        let repository = Repository::new(&api.session, &host, name);
        let seen = repository.images().await?;
        match (lacking(&seen, wanted), field) {
            (Some((tag, digest)), "images") => {
                let target = repository.target(tag, digest).await?;
                api.session.images.push(target).map(|push| Some(Pending(push)))
            }
            (None, "images") => Ok(None),
            _ => Err(invalid("change", id, &format!("`{field}` does not change in place"))),
        }
    }

    async fn change(api: &Api, change: &str) -> Result<State> {
        api.session.images.state(change)
    }
}

/// Where a repository is.
struct Address<'i> {
    /// The host of its registry.
    host: String,
    /// Its name there.
    name: &'i str,
    /// Whether the registry answers only some networks.
    is_closed: bool,
}

/// Where a repository is; `None` where its registry is not there.
async fn address<'i>(api: &Api, id: &'i str) -> Result<Option<Address<'i>>> {
    let Some((registry, name)) = id.split_once(':') else { return Err(invalid("read", id, "it names no repository")) };
    let found = api.find(Call::get(registry, VERSION)).await?.unwrap_or_default();
    let properties = &found["properties"];
    let is_closed =
        properties["publicNetworkAccess"] == "Disabled" || properties["networkRuleSet"]["defaultAction"] == "Deny";
    // A registry with a label of its domain has another host than its name says.
    let host = properties["loginServer"].as_str();
    Ok(host.map(|host| Address { host: host.to_owned(), name, is_closed }))
}
