//! Resource groups and the registration of resource providers: <https://learn.microsoft.com/rest/api/resources/>.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::Value;
use textnlp_cloud::document::last;
use textnlp_cloud::tags::LINEAGE;
use textnlp_cloud::{ObservedObject, State};
use textnlp_provider::{Error, ErrorKind, Foreign, Identity, Kind, Result, Spec};

use super::{create, delete, external, put, read};
use crate::api::{Api, Call, RESOURCES, Reply, tags_at};
use crate::operation::Pending;
use crate::row::{LOCATION, Marks, Rest, RestKind, Table};
use crate::table::{MINUTE, Row, kind};

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            // A registration reaches one region after the other (nforgeio/neonKUBE#1670).
            deadline: MINUTE.saturating_mul(30),
            permissions: &[read("Microsoft.Resources/subscriptions/providers/read"), create("{name}/register/action")],
            terraform: &[("azurerm_resource_provider_registration", "id")],
            ..kind("azure.provider", "a registered resource provider", Identity::Part)
        },
        service: "Microsoft.Resources",
        resource: &Rest::<Provider>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(60),
            permissions: &[
                read("Microsoft.Resources/subscriptions/resourceGroups/read"),
                read("Microsoft.Resources/subscriptions/resources/read"),
                read("Microsoft.Resources/subscriptions/resourceGroups/resources/read"),
                read("Microsoft.Resources/subscriptions/operationresults/read"),
                put("Microsoft.Resources/subscriptions/resourceGroups/write"),
                delete("Microsoft.Resources/subscriptions/resourceGroups/delete"),
            ],
            terraform: &[("azurerm_resource_group", "id")],
            ..kind("azure.group", "a resource group", Identity::Named)
        },
        service: "Microsoft.Resources",
        resource: &Rest::<Group>::kind(),
        refused: &[("location", "a group stays where it is: deploy another environment and move to it")],
    },
];

/// The registration of a resource provider. It stays: others may use it. Outputs: `id`, `name`.
struct Provider;

#[async_trait]
impl RestKind for Provider {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Resources/providers",
        version: RESOURCES,
        path: "/subscriptions/{subscription}/providers/{name}",
        marks: Marks::Part,
        retained: true,
        undeclared: Some("the tool registers resource providers by itself"),
        ..Table::USUAL
    };

    fn state(document: &Value) -> State {
        match document["registrationState"].as_str().unwrap_or_default() {
            "Registered" => State::Ready,
            "NotRegistered" | "" => State::Gone,
            word => State::Pending(word.to_ascii_lowercase()),
        }
    }

    async fn send(api: &Api, id: &str, _document: Value) -> Result<Reply> {
        let call = Call::new(Method::POST, format!("{id}/register"), RESOURCES);
        api.send(call.saying("register", last(id))).await
    }
}

/// A resource group. Outputs: `id`, `name`.
struct Group;

#[async_trait]
impl RestKind for Group {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Resources/resourceGroups",
        version: RESOURCES,
        path: "/subscriptions/{subscription}/resourceGroups/{name}",
        fields: &[LOCATION],
        ..Table::USUAL
    };

    /// What others created in it: deleting the group would delete that too. What has no tags and is inside of an object of this
    /// deployment, such as a key of a vault, ends with that.
    async fn foreign(api: &Api, id: &str, document: &Value) -> Result<Vec<Foreign>> {
        let lineage = tags_at(document, "/tags").get(LINEAGE).cloned();
        let all = api.list(Call::get(format!("{id}/resources"), RESOURCES)).await?;
        let is_own = |one: &Value| lineage.is_some() && tags_at(one, "/tags").get(LINEAGE) == lineage.as_ref();
        let own: Vec<&str> = all.iter().filter(|one| is_own(one)).filter_map(|one| one["id"].as_str()).collect();
        let foreign = |one: &Value| {
            let id = one["id"].as_str()?;
            let is_part = tags_at(one, "/tags").is_empty() && own.iter().any(|owner| is_inside(id, owner));
            let is_ours = is_own(one) || is_part;
            external(id, one["type"].as_str().unwrap_or("resource")).filter(|_| !is_ours)
        };
        Ok(all.iter().filter_map(foreign).collect())
    }

    /// Only an empty group is deleted: what is in it would go with it, data that stays included.
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        let id = seen.id.as_str();
        let all = api.list(Call::get(format!("{id}/resources"), RESOURCES)).await?;
        if let Some(one) = all.first() {
            let error = Error::new(ErrorKind::Conflict, "delete", last(id));
            return Err(error.because(format!("`{}` is still in it", one["id"].as_str().unwrap_or_default())));
        }
        Ok(api.send(Call::new(Method::DELETE, id, RESOURCES)).await?.pending)
    }
}

/// Whether an object is inside of another one, by their ids, whose case does not count.
fn is_inside(id: &str, owner: &str) -> bool {
    let start = id.get(..owner.len()).is_some_and(|start| start.eq_ignore_ascii_case(owner));
    start && id.get(owner.len()..).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn key_is_inside_of_its_vault_and_not_of_one_with_a_longer_name() {
        let vault = "/subscriptions/a/resourceGroups/b/providers/Microsoft.KeyVault/vaults/tn-1";
        assert!(is_inside(&format!("{}/keys/data", vault.to_uppercase()), vault));
        assert!(!is_inside(vault, vault) && !is_inside(&format!("{vault}2/keys/data"), vault));
    }

    #[test]
    fn a_provider_that_is_not_registered_does_not_exist() {
        let of = |word: &str| Provider::state(&json!({ "registrationState": word }));
        assert_eq!([of("Registered"), of("NotRegistered")], [State::Ready, State::Gone]);
        assert_eq!(of("Registering"), State::Pending("registering".to_owned()));
    }
}
