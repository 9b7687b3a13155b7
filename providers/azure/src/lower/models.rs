//! The container of your own models, its lifecycle and its copies in another region, the identity of the pods that read them, and the key
//! that the secrets in the cluster of a protected site are encrypted with.

use serde_json::{Value, json};
use textnlp_cloud::document::capture;
use textnlp_provider::cluster::{BucketIdentity, IdentityToken, MODELS_ACCOUNT};
use textnlp_provider::component::ModelStore;
use textnlp_provider::{CloudId, Component, ComponentName, OutputRef, Ownership, ResourceId, Site};

use super::network::needed;
use super::{Lowering, MODELS, SERVER, SERVER_IDENTITY, is_served, output};
use crate::kinds::identity::BLOB_READER;
use crate::kinds::storage::{ACCOUNT_NAME, NEW_POLICY, POLICY_ID, RULE_ID};
use crate::names;
use crate::tables::zones;

/// Days for which a deleted or replaced blob can be restored.
const SOFT_DELETE_DAYS: u32 = 14;
/// Days for which a deleted vault can be recovered: the most.
const VAULT_DAYS: u32 = 90;
/// The size of a key.
const BITS: u32 = 3_072;
/// The container of models, and the scheme of containers.
const CONTAINER: &str = "models";
const SCHEME: &str = "az";
/// The id of a container in lower case: the case of ids says nothing (Azure/azure-rest-api-specs#24337).
const CONTAINER_ID: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.storage/storageaccounts/{account}/blobservices/default/containers/{container}";
/// The parts that are the account and the container.
const ACCOUNT: &str = "account";
pub(super) const PART: &str = "container";
/// The parts that give pods the right to read it: their identity, and what they sign in with.
const IDENTITY: &str = "reader-identity";
const READER: &str = "reader";
/// The part that is the role of the servers on it.
pub(super) const READER_ROLE: &str = "reader-role";
/// The most characters of the name of an identity that this program gives.
const MOST_OF_IDENTITY: usize = 63;
/// The component of a site's cluster.
const CLUSTER: &str = "cluster";
/// The audience of tokens for Entra ID, the file that has one, and its lifetime, as AKS's own webhook sets them
/// (<https://azure.github.io/azure-workload-identity/docs/topics/service-account-labels-and-annotations.html>).
const AUDIENCE: &str = "api://AzureADTokenExchange";
const TOKEN_FOLDER: &str = "/var/run/secrets/azure/tokens";
const TOKEN_FILE: &str = "azure-identity-token";
const TOKEN_SECONDS: u32 = 3_600;

impl Lowering<'_> {
    pub(super) fn models(&mut self, store: &ModelStore) {
        if store.key.is_some() {
            self.problem("existing_key", "it is not supported on Azure yet", "remove `storage.existing_key`");
        }
        if self.component.existing.is_some() && store.archive_after_days.is_some() {
            let cause = "an existing container is never changed, and its lifecycle is a setting of its account";
            self.problem("archive_after", cause, "remove it, and add a lifecycle rule to that account yourself");
        }
        let existing = self.component.existing.as_ref();
        let Some((account, name)) = models_container(self.site, existing.map(CloudId::as_str)) else {
            let cause = "it is not the id of a container of blobs";
            let fix = "write the id that `az storage account show --name ACCOUNT --query id --output tsv` prints, and `/blobServices/default/containers/CONTAINER` after it";
            return self.problem("existing", cause, fix);
        };
        if let Some(container) = self.container(&account, &name, store.replica.is_some()) {
            self.reader(store, (&account, &name), &container);
            if let Some(account) = self.part_of(self.component.name.as_str(), ACCOUNT) {
                self.lifecycle("lifecycle", &account, Some(container.clone()), store.archive_after_days);
            }
            if let Some(replica) = &store.replica {
                self.replica(&replica.region, &container, store.archive_after_days);
            }
        }
        // The key is for what is in a cluster.
        if self.site.protect_data && !is_served(self.site) {
            let spec = self.of_group(json!({ "name": names::vault(self.site), "soft_delete_days": VAULT_DAYS }));
            let Some(vault) = self.part("vault", "azure.vault", spec) else { return };
            self.part("key", "azure.key", json!({ "name": "data", "vault": output(&vault, "id"), "bits": BITS }));
        }
    }

    /// The container in an account of the site, or an existing one.
    fn container(&mut self, account: &str, name: &str, is_copied: bool) -> Option<ResourceId> {
        if let Some(existing) = &self.component.existing {
            // The id without `/blobServices/default/containers/NAME`.
            let account = existing.as_str().rsplitn(5, '/').last();
            let spec = json!({ "name": name, "account": account });
            return self.owned_part(PART, "azure.container", spec, Ownership::External(existing.clone()));
        }
        let account = self.of_group(account_spec(account, &self.site.region, is_copied));
        let account = self.part(ACCOUNT, "azure.storage", account)?;
        self.part(PART, "azure.container", json!({ "name": name, "account": output(&account, "id") }))
    }

    /// The rule that moves the blobs of a container to a cheaper tier at an age.
    fn lifecycle(&mut self, part: &str, account: &ResourceId, container: Option<ResourceId>, days: Option<u32>) {
        let Some(days) = days.filter(|_| self.component.existing.is_none()) else { return };
        let rule = json!({ "container": CONTAINER, "cold_after_days": days });
        self.part(part, "azure.lifecycle", json!({ "account": output(account, "id"), "rule": rule }));
        self.after(container);
    }

    /// Copies of new blobs in another region, in an account and a group of their own there.
    fn replica(&mut self, region: &str, container: &ResourceId, archive_after_days: Option<u32>) {
        if self.component.existing.is_some() {
            let cause = "an existing container is never changed, and its copies are a setting of its account";
            let fix = "remove it, and set up the object replication of that account yourself";
            return self.problem("replicate_to", cause, fix);
        }
        let is_of_region = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !region.chars().all(is_of_region) || region == self.site.region {
            let cause = format!("`{region}` is not another region that {} can be copied to", self.site.region);
            let fix = "write one that `az account list-locations --query [].name` prints, such as northeurope";
            return self.problem("replicate_to", cause, fix);
        }
        let Some(account) = self.part_of(self.component.name.as_str(), ACCOUNT) else { return };
        let name = names::models_group(self.site);
        let id = format!("/subscriptions/{}/resourceGroups/{name}", self.site.account);
        let spec = json!({ "subscription": self.site.account, "name": name, "location": region });
        let group = self.part("replica-group", "azure.group", spec);
        for number in 1..=needed(self.site).len() {
            self.after(self.part_of(self.first(), &format!("provider-{number}")));
        }
        let mut spec = account_spec(&names::storage(self.site, "models-replica"), region, false);
        (spec["group"], spec["location"]) = (json!(id), json!(region));
        let Some(replica) = self.part("replica-account", "azure.storage", spec) else { return };
        self.after(group);
        let copies = json!({ "name": CONTAINER, "account": output(&replica, "id") });
        let copies = self.part("replica-container", "azure.container", copies);
        self.lifecycle("replica-lifecycle", &replica, copies.clone(), archive_after_days);
        let mut spec = json!({
            "account": output(&replica, "id"),
            "policy": NEW_POLICY,
            "source": output(&account, "id"),
            "destination": output(&replica, "id"),
            "container": CONTAINER,
            "rule": null,
        });
        let Some(policy) = self.part("replica-policy", "azure.replication-policy", spec.clone()) else { return };
        self.after(copies);
        self.after(Some(container.clone()));
        for (field, value) in [
            ("account", output(&account, "id")),
            ("policy", output(&policy, POLICY_ID)),
            ("rule", output(&policy, RULE_ID)),
        ] {
            spec[field] = value;
        }
        self.part("policy", "azure.replication-policy", spec);
    }

    /// The role of the servers on the site's container, if models come from there: of pods, which have an identity for it, or of containers
    /// of Azure Machine Learning.
    fn reader(&mut self, store: &ModelStore, (account, own): (&str, &str), container: &ResourceId) {
        let cluster = self.site.cluster.as_deref().filter(|site| !site.existing);
        let subject = cluster.map(|site| format!("system:serviceaccount:{}:{MODELS_ACCOUNT}", site.namespace));
        let who = match &subject {
            Some(_) => "pods",
            None if is_served(self.site) => "servers",
            None => return,
        };
        let mut is_read = false;
        for model in &store.models {
            let named = match model.source.strip_prefix("az://") {
                Some(rest) => rest.split_once('/').map_or(rest, |(container, _)| container),
                None if model.source.starts_with("bucket:") => own,
                None => continue,
            };
            is_read = true;
            if named != own {
                let cause = format!(
                    "model `{}` is in the container {named}, on which the site gives {who} no role",
                    model.name
                );
                let fix = format!(
                    "push it to the container of the site: `AZURE_STORAGE_ACCOUNT_NAME={account} textnlp-deploy model push SOURCE az://{own}/`; or name that container in `storage.existing`"
                );
                self.problem("models", cause, fix);
            }
        }
        if !is_read {
            return;
        }
        let Some(subject) = subject else {
            let principal = self.output_of(SERVER, SERVER_IDENTITY, "principal");
            self.role(READER_ROLE, &output(container, "id"), BLOB_READER, &principal);
            return;
        };
        let identity = self.of_group(json!({ "name": names::of(self.site, MODELS, MOST_OF_IDENTITY) }));
        let Some(identity) = self.part(IDENTITY, "azure.identity", identity) else { return };
        let role = self.role(READER_ROLE, &output(container, "id"), BLOB_READER, &output(&identity, "principal"));
        let cluster = CLUSTER.parse::<ComponentName>().map(|cluster| ResourceId::of(&self.site.name, &cluster));
        let issuer = cluster.map_or(Value::Null, |cluster| output(&cluster, "issuer"));
        let credential = json!({
            "identity": output(&identity, "id"),
            "name": READER,
            "issuer": issuer,
            "subject": subject,
            "audiences": [AUDIENCE],
        });
        self.part(READER, "azure.federated-credential", credential);
        self.after(role);
    }
}

/// An account without its group and location. A change feed is what copies are made by.
pub(super) fn account_spec(name: &str, region: &str, change_feed: bool) -> Value {
    json!({
        "name": name,
        "sku": if zones::zones(region).is_empty() { "Standard_LRS" } else { "Standard_ZRS" },
        "shared_key": false,
        "versioned": true,
        "soft_delete_days": SOFT_DELETE_DAYS,
        "change_feed": change_feed,
    })
}

/// The storage account and the container of a site's models; of an existing container by its id, `None` if that is none.
pub fn models_container(site: &Site, existing: Option<&str>) -> Option<(String, String)> {
    let Some(id) = existing else { return Some((names::storage(site, MODELS), CONTAINER.to_owned())) };
    let mut found = capture(CONTAINER_ID, &id.to_ascii_lowercase())?;
    found.remove("account").zip(found.remove("container"))
}

/// How pods of a cluster that AKS runs sign in to containers.
pub(crate) fn bucket_identity(component: &Component, site: &Site) -> Option<BucketIdentity> {
    let models = ComponentName::new(MODELS).ok()?;
    let part = |name: &str| ResourceId::part(&site.name, &models, name).ok();
    let (identity, container) = (part(IDENTITY)?, part(PART)?);
    let of = |part: &ResourceId, field: &str| json!(OutputRef::new(part.clone(), field));
    let variables = [
        ("AZURE_CLIENT_ID", of(&identity, "client")),
        ("AZURE_TENANT_ID", of(&identity, "tenant")),
        ("AZURE_FEDERATED_TOKEN_FILE", json!(format!("{TOKEN_FOLDER}/{TOKEN_FILE}"))),
        // Only the model store has the existing container: the others know its account by this output.
        ("AZURE_STORAGE_ACCOUNT_NAME", of(&container, ACCOUNT_NAME)),
    ];
    // Only models of the model store have sources.
    let own = models_container(site, component.existing.as_ref().map(CloudId::as_str));
    let own = own.map_or_else(|| CONTAINER.to_owned(), |(_, container)| container);
    Some(BucketIdentity {
        scheme: SCHEME.to_owned(),
        own: format!("{SCHEME}://{own}/"),
        variables: variables.map(|(name, value)| (name.to_owned(), value)).into(),
        token: Some(IdentityToken {
            audience: AUDIENCE.to_owned(),
            folder: TOKEN_FOLDER.to_owned(),
            file: TOKEN_FILE.to_owned(),
            seconds: TOKEN_SECONDS,
        }),
        services: Vec::new(),
        part: READER.to_owned(),
        skip_annotation: None,
    })
}
