//! Registries of images, and the images that are pushed: <https://learn.microsoft.com/rest/api/containerregistry/>.

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_cloud::document::get;
use textnlp_cloud::{State, has_images, lacking};
use textnlp_provider::{DataClass, Error, ErrorKind, Identity, Kind, Pricing, Result};

use super::{delete, put, read};
use crate::api::{Api, Call, Reply};
use crate::images::Repository;
use crate::operation::Pending;
use crate::row::{Field, LOCATION, Marks, Rest, RestKind, Table, Update, invalid};
use crate::table::{Row, kind};

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
            permissions: &[
                read("Microsoft.ContainerRegistry/registries/read"),
                read("Microsoft.ContainerRegistry/registries/metadata/read"),
                read("Microsoft.ContainerRegistry/registries/pull/read"),
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

/// A repository, which begins with the first push to it, and ends with its registry. Its name may have slashes, so that a colon is
/// before it in its id, which is none of Azure Resource Manager. Outputs: `id`, `name`.
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
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let Some((host, name)) = address(api, id).await? else { return Ok(None) };
        let images = Repository::new(&api.session, &host, name).images().await?;
        Ok(images.map(|images| json!({ "images": images })))
    }

    /// Images of earlier releases and those that others pushed stay.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "images" && has_images(seen, wanted)
    }

    /// The first push makes the repository.
    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        let wanted = get(&document, IMAGES).cloned().unwrap_or_default();
        let pending = Self::put(api, id, &wanted, "images").await?;
        Ok(Reply { status: 202, body: Value::Null, pending })
    }

    /// The image is sent in the background: it takes longer than a call may.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<Pending>> {
        let Some((host, name)) = address(api, id).await? else {
            return Err(Error::new(ErrorKind::NotFound, "push", id).because("the registry does not exist"));
        };
        let repository = Repository::new(&api.session, &host, name);
        let seen = repository.images().await?.unwrap_or_default();
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

/// The host of the registry of a repository, and the repository's name; `None` where the registry is not there.
async fn address<'i>(api: &Api, id: &'i str) -> Result<Option<(String, &'i str)>> {
    let Some((registry, name)) = id.split_once(':') else { return Err(invalid("read", id, "it names no repository")) };
    let found = api.find(Call::get(registry, VERSION)).await?;
    // A registry of an account with labels has another host than its name says.
    let host = found.as_ref().and_then(|one| one["properties"]["loginServer"].as_str());
    Ok(host.map(|host| (host.to_owned(), name)))
}
