//! Service accounts, and bindings of IAM: one member in one role of a policy that others change too
//! (<https://cloud.google.com/iam/docs/reference/rest/v1/Policy>).
//!
//! A policy is read, changed and written with its etag: a write that another one overtook is a conflict, and the engine repeats the
//! whole step (hashicorp/terraform-provider-google#12512). It is read and written at version 3, so that conditional bindings of others
//! stay (hashicorp/terraform-provider-google#5218).

use std::collections::BTreeMap;
use std::marker::PhantomData;

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_cloud::document::{get, last};
use textnlp_cloud::tags::Tags;
use textnlp_cloud::{ObservedObject, State};
use textnlp_provider::{Declaration, Declare, Error, ErrorKind, Identity, Kind, Outputs, Plugin, Result, Spec, Wanted};

use super::run::NOT_EXPORTED;
use super::{create, delete, put, read};
use crate::api::{Api, Call, is_disabled};
use crate::declare::{ID, NO_DESCRIPTION, Terraform, binding, binding_id, declaration, segment};
use crate::labels;
use crate::row::{Create, Field, Marks, New, Rest, RestKind, Table, Update, part_of, send};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The longest description of a service account.
const DESCRIPTION: usize = 256;
/// The version of policies with conditions.
const VERSION: i32 = 3;
/// The operation that waits for a new account.
const SETTLING: &str = "settling";
/// Good reads in a row after which a new account counts as visible everywhere (hashicorp/terraform-provider-google#15042).
const GOOD_READS: usize = 3;
/// The start of a member that is a service agent of Google, by the name of its domain: its address has the number of the project.
const AGENT: &str = "agent:";

/// The start of a member that is a service account of the project's clusters, `pods:NAMESPACE/ACCOUNT`: its principal has the number of
/// the project (<https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity#kubernetes-resources-iam-policies>).
pub(crate) const PODS: &str = "pods:";

/// The service agents that use keys: their names, their domains, and the services that create them
/// (<https://cloud.google.com/iam/docs/service-agents>).
const AGENTS: &[(&str, &str, Service)] = &[
    ("agent:aiplatform", "gcp-sa-aiplatform", Service::AiPlatform),
    ("agent:artifactregistry", "gcp-sa-artifactregistry", Service::ArtifactRegistry),
    ("agent:compute", "compute-system", Service::Compute),
    ("agent:container", "container-engine-robot", Service::Container),
    ("agent:run", "serverless-robot-prod", Service::Run),
    ("agent:sql", "gcp-sa-cloud-sql", Service::Sql),
    ("agent:storage", "gs-project-accounts", Service::Storage),
];

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            permissions: &[
                create("iam.serviceAccounts.create"),
                delete("iam.serviceAccounts.delete"),
                read("iam.serviceAccounts.get"),
                read("iam.serviceAccounts.list"),
                put("iam.serviceAccounts.update"),
            ],
            terraform: &[("google_service_account", "id")],
            ..kind("gcp.service-account", "a service account", Identity::Named)
        },
        service: "iam",
        resource: &Rest::<ServiceAccount>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("resourcemanager.projects.getIamPolicy"),
                create("resourcemanager.projects.setIamPolicy"),
                delete("resourcemanager.projects.setIamPolicy"),
                read("iam.serviceAccounts.get"),
            ],
            ..kind("gcp.project-binding", "a role of an account in the project", Identity::Part)
        },
        service: "cloudresourcemanager",
        resource: &Rest::<Binding<OfProject>>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(15),
            permissions: &[
                read("cloudkms.cryptoKeys.getIamPolicy"),
                create("cloudkms.cryptoKeys.setIamPolicy"),
                read("cloudkms.cryptoKeys.get"),
                create("serviceusage.services.enable"),
                read("resourcemanager.projects.get"),
            ],
            ..kind("gcp.key-binding", "a role of a service agent on a key", Identity::Part)
        },
        service: "cloudkms",
        resource: &Rest::<Binding<OfKey>>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("storage.buckets.get"),
                read("storage.buckets.getIamPolicy"),
                create("storage.buckets.setIamPolicy"),
                delete("storage.buckets.setIamPolicy"),
                read("resourcemanager.projects.get"),
            ],
            ..kind("gcp.bucket-binding", "a role of the servers on a bucket", Identity::Part)
        },
        service: "storage",
        resource: &Rest::<Binding<OfBucket>>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("run.services.getIamPolicy"),
                create("run.services.setIamPolicy"),
                delete("run.services.setIamPolicy"),
                read("iam.serviceAccounts.get"),
                // Requests to the service are those of the member.
                read("iam.serviceAccounts.getOpenIdToken"),
            ],
            ..kind("gcp.run-binding", "a role of an account on a service of Cloud Run", Identity::Part)
        },
        service: "run",
        resource: &Rest::<Binding<OfRun>>::kind(),
        refused: &[],
    },
];

/// A service account. Outputs: `id`, `name`, `email`, `member`.
struct ServiceAccount;

#[async_trait]
impl RestKind for ServiceAccount {
    const TABLE: &'static Table = &Table {
        service: Service::Iam,
        path: "projects/{project}/serviceAccounts/{name}@{project}.iam.gserviceaccount.com",
        collection: "projects/{project}/serviceAccounts",
        items: "accounts",
        create: Create::Beside("accountId", "serviceAccount"),
        fields: &[Field::plain("display_name", "/displayName").patched()],
        in_place: &["display_name"],
        update: Update::Beside("serviceAccount"),
        marks: Marks::Description("/description", DESCRIPTION, true),
        created: "",
        terraform: Terraform {
            kind: "google_service_account",
            named: &[("project", "/project"), ("name", "/account_id")],
            moved: &[NO_DESCRIPTION],
            ignored: &["description"],
            outputs: &[ID, ("email", "email"), ("member", "member")],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    /// An account that does not exist is forbidden, not missing, for some reads: the list tells
    /// (hashicorp/terraform-provider-google#15042, crossplane-contrib/provider-upjet-gcp#411).
    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let error = match api.find_enabled(Call::get(Service::Iam, id)).await {
            Err(error) if error.kind == ErrorKind::Denied => error,
            found => return found,
        };
        let path = api.path(Self::TABLE.collection);
        match api.list(Service::Iam, &path, "accounts", &[]).await {
            Ok(accounts) if accounts.iter().all(|one| one["name"] != id) => Ok(None),
            _ => Err(error),
        }
    }

    fn state(document: &Value) -> State {
        match document["disabled"] == true {
            true => State::Degraded("it is disabled".to_owned()),
            false => State::Ready,
        }
    }

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        if let Some(email) = document["email"].as_str() {
            outputs.insert("email".to_owned(), json!(email));
            outputs.insert("member".to_owned(), json!(format!("serviceAccount:{email}")));
        }
    }

    async fn send(api: &Api, new: New) -> Result<Option<String>> {
        send(api, Self::TABLE, new).await?;
        Ok(Some(SETTLING.to_owned()))
    }

    /// A new account is visible in some replicas at first: a policy that names it is refused by the others.
    async fn change(api: &Api, id: &str, _change: &str) -> Result<State> {
        for _ in 0..GOOD_READS {
            match api.find(Call::get(Service::Iam, id)).await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(State::Pending("not visible everywhere".to_owned())),
                Err(error) if error.kind == ErrorKind::Denied => {
                    return Ok(State::Pending("not visible everywhere".to_owned()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(State::Ready)
    }
}

/// What a policy is of.
#[async_trait]
trait Target: Send + Sync + 'static {
    const SERVICE: Service;
    /// Whether a binding stays when its resource is deleted.
    const IS_RETAINED: bool = false;
    /// How Terraform declares a binding; the usual form if it does not.
    const TERRAFORM: Terraform;
    /// Its attribute for the target, and whether that is the whole path.
    const TARGET: (&'static str, bool);

    /// The policy at version 3; `None` if its target does not exist.
    async fn policy(api: &Api, target: &str) -> Result<Option<Value>>;

    /// Replaces the policy, unless another process has changed it since.
    async fn set_policy(api: &Api, target: &str, policy: Value) -> Result<()> {
        let call = Call::post(Self::SERVICE, format!("{target}:setIamPolicy"), json!({ "policy": policy }));
        api.send(call.saying("change", policy_of(target))).await.map(drop)
    }

    /// The tags of the member; none where the target may be an object of another deployment.
    async fn tags(_api: &Api, _member: &str) -> Result<Tags> {
        Ok(Tags::new())
    }
}

struct OfProject;
struct OfKey;
struct OfBucket;
struct OfRun;

fn policy_of(target: &str) -> String {
    format!("the policy of {target}")
}

/// The tags of a service account of this project.
async fn tags_of_account(api: &Api, email: &str) -> Result<Tags> {
    let path = format!("projects/{}/serviceAccounts/{email}", api.project());
    let found = ServiceAccount::fetch(api, &path).await?.unwrap_or_default();
    Ok(labels::of_description(get(&found, "/description").and_then(Value::as_str).unwrap_or_default()))
}

/// The same of a member, if it is one.
async fn tags_of_member(api: &Api, member: &str) -> Result<Tags> {
    match member.strip_prefix("serviceAccount:").filter(|email| crate::token::is_account(email)) {
        Some(email) => tags_of_account(api, email).await,
        None => Ok(Tags::new()),
    }
}

/// The policy of an object whose service reads it with GET.
async fn policy_by_get(api: &Api, service: Service, target: &str) -> Result<Option<Value>> {
    let call = Call::get(service, format!("{target}:getIamPolicy"));
    let call = call.query("options.requestedPolicyVersion", VERSION.to_string());
    api.find_enabled(call.saying("read", policy_of(target))).await
}

#[async_trait]
impl Target for OfProject {
    const SERVICE: Service = Service::ResourceManager;
    const TERRAFORM: Terraform = Terraform {
        kind: "google_project_iam_member",
        import: |_, all| binding_id(all["project"].as_str().unwrap_or_default(), all),
        ..Terraform::USUAL
    };
    const TARGET: (&'static str, bool) = ("project", false);

    async fn policy(api: &Api, target: &str) -> Result<Option<Value>> {
        let body = json!({ "options": { "requestedPolicyVersion": VERSION } });
        let call = Call::post(Self::SERVICE, format!("{target}:getIamPolicy"), body);
        api.find_enabled(call.saying("read", policy_of(target))).await
    }

    async fn tags(api: &Api, member: &str) -> Result<Tags> {
        tags_of_member(api, member).await
    }
}

#[async_trait]
impl Target for OfKey {
    const SERVICE: Service = Service::CloudKms;
    /// The service agents are those of the whole project: other environments decrypt with the same role.
    const IS_RETAINED: bool = true;
    const TERRAFORM: Terraform = Terraform {
        kind: "google_kms_crypto_key_iam_member",
        import: |_, all| binding_id(all["crypto_key_id"].as_str().unwrap_or_default(), all),
        ..Terraform::USUAL
    };
    const TARGET: (&'static str, bool) = ("crypto_key_id", true);

    async fn policy(api: &Api, target: &str) -> Result<Option<Value>> {
        policy_by_get(api, Self::SERVICE, target).await
    }
}

#[async_trait]
impl Target for OfRun {
    const SERVICE: Service = Service::Run;
    const TERRAFORM: Terraform = Terraform::USUAL;
    const TARGET: (&'static str, bool) = ("name", true);

    async fn policy(api: &Api, target: &str) -> Result<Option<Value>> {
        policy_by_get(api, Self::SERVICE, target).await
    }

    async fn tags(api: &Api, member: &str) -> Result<Tags> {
        tags_of_member(api, member).await
    }
}

#[async_trait]
impl Target for OfBucket {
    const SERVICE: Service = Service::Storage;
    const TERRAFORM: Terraform = Terraform {
        kind: "google_storage_bucket_iam_member",
        import: |_, all| binding_id(&format!("b/{}", all["bucket"].as_str().unwrap_or_default()), all),
        ..Terraform::USUAL
    };
    const TARGET: (&'static str, bool) = ("bucket", false);

    async fn policy(api: &Api, target: &str) -> Result<Option<Value>> {
        let found = api.buckets().await?.policy(target, VERSION).await;
        api.or_nothing(Self::SERVICE, found).await
    }

    async fn set_policy(api: &Api, target: &str, policy: Value) -> Result<()> {
        api.buckets().await?.set_policy(target, &policy).await
    }
}

/// One member in one role, without a condition. Outputs: `id`, `name`.
struct Binding<T>(PhantomData<fn() -> T>);

#[async_trait]
impl<T: Target> RestKind for Binding<T> {
    const TABLE: &'static Table = &Table {
        service: T::SERVICE,
        path: "{target}#{role}#{member}",
        collection: "{target}",
        retained: T::IS_RETAINED,
        created: "",
        terraform: T::TERRAFORM,
        ..Table::USUAL
    };

    fn declared(api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        if T::TERRAFORM.kind.is_empty() {
            return Err(NOT_EXPORTED.to_owned());
        }
        let id = request.object.cloud_id.as_str();
        let (target, _, member) = parts(id).map_err(|error| error.to_string())?;
        let member = match is_numbered(member) {
            true => {
                let known = api.and_then(|api| Some((api.project(), api.known_number()?)));
                let (project, number) = known.ok_or_else(|| {
                    format!("the number of the project is not known: enable {} first", Service::ResourceManager.api())
                })?;
                numbered(project, number, member).map_err(|error| error.to_string())?
            }
            false => member.to_owned(),
        };
        let (attribute, is_whole) = T::TARGET;
        let target = if is_whole { target } else { last(target) };
        *document = Value::Object(binding(id, member, attribute, target));
        Ok(())
    }

    fn declarations(api: Option<&Api>, request: &Declare<'_>, main: Declaration) -> Vec<Declaration> {
        let id = request.object.cloud_id.as_str();
        let agent = parts(id).ok().filter(|_| request.is_planned).and_then(|(target, _, member)| {
            // An existing key may be in another project.
            let project = api.map_or_else(|| segment(target, "projects"), Api::project);
            agent_before(api, project, member)
        });
        agent.into_iter().chain([main]).collect()
    }

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let (target, role, member) = parts(id)?;
        let Some(policy) = T::policy(api, target).await? else { return Ok(None) };
        if !has_member(&policy, role, &address(api, member).await?) {
            return Ok(None);
        }
        Ok(Some(part_of(&T::tags(api, member).await?, json!({}))))
    }

    async fn send(api: &Api, new: New) -> Result<Option<String>> {
        let (target, role, member) = parts(&new.id)?;
        create_agent(api, member).await?;
        let member = address(api, member).await?;
        write::<T>(api, target, |policy| add_member(policy, role, &member)).await
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        let (target, role, member) = parts(&seen.id)?;
        let member = address(api, member).await?;
        write::<T>(api, target, |policy| remove_member(policy, role, &member)).await
    }
}

/// Reads the number of the project, if a wanted binding has it in its member.
pub(crate) async fn prepare_declarations(api: &Api, wanted: &[Wanted]) -> Result<()> {
    let is_needed = |one: &Wanted| one.spec.get("member").and_then(Value::as_str).is_some_and(is_numbered);
    if !wanted.iter().any(is_needed) {
        return Ok(());
    }
    match api.project_number().await {
        // The bindings are left out with that reason.
        Err(error) if is_disabled(&error) => Ok(()),
        number => number.map(|_| ()),
    }
}

/// How Terraform creates a service agent before a policy names it: by reading it, or as an identity, which only the provider
/// `google-beta` has (<https://registry.terraform.io/providers/hashicorp/google-beta/latest/docs/resources/google_project_service_identity>).
fn agent_before(api: Option<&Api>, project: &str, member: &str) -> Option<Declaration> {
    let (_, _, service) = agent(member).ok()?;
    let of = |kind: &str, attributes: Value| declaration(api, kind, &attributes, String::new(), &[]);
    let declared = match service {
        Service::Compute | Service::Container => return None,
        Service::Storage => {
            let project = json!({ "project": project });
            Declaration { is_read: true, ..of("google_storage_project_service_account", project) }
        }
        _ => {
            let plugin = Plugin {
                name: "google-beta",
                source: "hashicorp/google-beta",
                version: "~> 7.0",
                settings: BTreeMap::new(),
            };
            let identity = json!({ "project": project, "service": service.api() });
            Declaration { plugin: Some(plugin), ..of("google_project_service_identity", identity) }
        }
    };
    Some(Declaration { is_new_only: true, ..declared })
}

fn parts(id: &str) -> Result<(&str, &str, &str)> {
    let mut parts = id.splitn(3, '#');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(target), Some(role), Some(member)) => Ok((target, role, member)),
        _ => Err(crate::row::invalid("read", id, "it is no id of a binding")),
    }
}

/// The member as policies have it.
async fn address(api: &Api, member: &str) -> Result<String> {
    match is_numbered(member) {
        true => numbered(api.project(), api.project_number().await?, member),
        false => Ok(member.to_owned()),
    }
}

/// Whether the member has the number of the project in its address.
fn is_numbered(member: &str) -> bool {
    member.starts_with(PODS) || member.starts_with(AGENT)
}

fn numbered(project: &str, number: &str, member: &str) -> Result<String> {
    if let Some((namespace, account)) = member.strip_prefix(PODS).and_then(|rest| rest.split_once('/')) {
        return Ok(format!(
            "principal://iam.googleapis.com/projects/{number}/locations/global/workloadIdentityPools/{project}.svc.id.goog/subject/ns/{namespace}/sa/{account}"
        ));
    }
    let (_, domain, _) = agent(member)?;
    Ok(format!("serviceAccount:service-{number}@{domain}.iam.gserviceaccount.com"))
}

fn agent(member: &str) -> Result<(&'static str, &'static str, Service)> {
    let found = AGENTS.iter().find(|(name, ..)| *name == member).copied();
    found.ok_or_else(|| crate::row::invalid("bind", member, "it is no service agent of the table"))
}

/// A service agent exists only once it was asked for, and a policy that names it before is refused
/// (hashicorp/terraform-provider-google#15572).
async fn create_agent(api: &Api, member: &str) -> Result<()> {
    if !member.starts_with(AGENT) {
        return Ok(());
    }
    let (_, _, service) = agent(member)?;
    let project = api.project();
    let call = match service {
        // They come with the services themselves (<https://cloud.google.com/kubernetes-engine/docs/how-to/service-accounts>,
        // <https://cloud.google.com/compute/docs/access/service-accounts#compute_engine_service_account>).
        Service::Compute | Service::Container => return Ok(()),
        Service::Storage => Call::get(Service::Storage, format!("projects/{project}/serviceAccount")),
        _ => {
            let path = format!("projects/{project}/services/{}:generateServiceIdentity", service.api());
            Call::new(Service::ServiceUsageBeta, reqwest::Method::POST, path)
        }
    };
    api.send(call.saying("create", format!("the service agent of {}", service.title()))).await.map(drop)
}

/// Reads a policy and writes it back changed.
async fn write<T: Target>(api: &Api, target: &str, change: impl FnOnce(&mut Value)) -> Result<Option<String>> {
    let subject = policy_of(target);
    let Some(mut policy) = T::policy(api, target).await? else {
        return Err(Error::new(ErrorKind::NotFound, "read", subject));
    };
    if get(&policy, "/etag").is_none() {
        let error = Error::new(ErrorKind::Unavailable, "read", subject);
        return Err(error.because("it has no etag, and a write without one would overwrite what others change"));
    }
    change(&mut policy);
    policy["version"] = json!(VERSION);
    T::set_policy(api, target, policy).await.map(|()| None)
}

/// Whether a binding is the one without a condition of a role.
fn is_of(binding: &Value, role: &str) -> bool {
    binding["role"] == role && get(binding, "/condition").is_none()
}

fn has_member(policy: &Value, role: &str, member: &str) -> bool {
    let bindings = policy["bindings"].as_array().into_iter().flatten();
    let mut members =
        bindings.filter(|one| is_of(one, role)).flat_map(|one| one["members"].as_array().into_iter().flatten());
    // A deleted account of the same address is another member (hashicorp/terraform-provider-google#10193).
    members.any(|one| *one == member)
}

fn add_member(policy: &mut Value, role: &str, member: &str) {
    if !policy["bindings"].is_array() {
        policy["bindings"] = json!([]);
    }
    let Some(bindings) = policy["bindings"].as_array_mut() else { return };
    let stale = stale(member);
    match bindings.iter_mut().find(|one| is_of(one, role)) {
        Some(binding) => {
            if !binding["members"].is_array() {
                binding["members"] = json!([]);
            }
            if let Some(members) = binding["members"].as_array_mut() {
                members.retain(|one| *one != member && !is_stale(one, &stale));
                members.push(json!(member));
            }
        }
        None => bindings.push(json!({ "role": role, "members": [member] })),
    }
}

fn remove_member(policy: &mut Value, role: &str, member: &str) {
    let stale = stale(member);
    let Some(bindings) = policy["bindings"].as_array_mut() else { return };
    for binding in bindings.iter_mut().filter(|one| is_of(one, role)) {
        if let Some(members) = binding["members"].as_array_mut() {
            members.retain(|one| *one != member && !is_stale(one, &stale));
        }
    }
    bindings.retain(|one| !(is_of(one, role) && one["members"].as_array().is_some_and(Vec::is_empty)));
}

/// How the member starts that was left by a deleted account of the same address.
fn stale(member: &str) -> String {
    format!("deleted:{member}?uid=")
}

fn is_stale(member: &Value, start: &str) -> bool {
    member.as_str().is_some_and(|text| text.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "roles/logging.logWriter";
    const OURS: &str = "serviceAccount:a@p.iam.gserviceaccount.com";

    fn policy() -> Value {
        json!({
            "version": 3,
            "etag": "BwXyz=",
            "auditConfigs": [{ "service": "allServices" }],
            "bindings": [
                { "role": "roles/owner", "members": ["user:ann@example.com"] },
                { "role": ROLE, "members": ["user:ann@example.com"],
                  "condition": { "title": "until May", "expression": "request.time < timestamp('2027-05-01T00:00:00Z')" } },
                { "role": ROLE, "members": ["group:ops@example.com"] },
            ],
        })
    }

    #[test]
    fn bindings_of_others_stay_byte_for_byte() {
        let mut changed = policy();
        add_member(&mut changed, ROLE, OURS);
        assert!(has_member(&changed, ROLE, OURS));
        assert_eq!(changed["bindings"][2]["members"], json!(["group:ops@example.com", OURS]));
        for place in [0, 1] {
            assert_eq!(changed["bindings"][place].to_string(), policy()["bindings"][place].to_string());
        }
        let once = changed.to_string();
        add_member(&mut changed, ROLE, OURS);
        assert_eq!(changed.to_string(), once, "a repeated write changes nothing");
        remove_member(&mut changed, ROLE, OURS);
        assert_eq!(changed.to_string(), policy().to_string());
    }

    #[test]
    fn a_binding_that_only_we_are_in_goes_with_us() {
        let mut changed = policy();
        add_member(&mut changed, "roles/x", OURS);
        remove_member(&mut changed, "roles/x", OURS);
        assert_eq!(changed.to_string(), policy().to_string());
        let mut empty = json!({ "etag": "a" });
        add_member(&mut empty, ROLE, OURS);
        assert!(has_member(&empty, ROLE, OURS));
    }

    #[test]
    fn members_of_deleted_accounts_are_others() {
        let mut changed = policy();
        changed["bindings"][2]["members"] = json!([format!("deleted:{OURS}?uid=1"), "group:ops@example.com"]);
        assert!(!has_member(&changed, ROLE, OURS));
        add_member(&mut changed, ROLE, OURS);
        assert_eq!(changed["bindings"][2]["members"], json!(["group:ops@example.com", OURS]));
    }

    #[test]
    fn agents_are_created_before_a_policy_names_them() {
        let declared = |member: &str| agent_before(None, "p", member);
        let sql = declared("agent:sql").unwrap();
        assert_eq!((sql.kind.as_str(), sql.is_read), ("google_project_service_identity", false));
        assert_eq!(sql.plugin.unwrap().name, "google-beta");
        assert_eq!(Value::Object(sql.body), json!({ "project": "p", "service": "sqladmin.googleapis.com" }));
        let storage = declared("agent:storage").unwrap();
        assert!(storage.is_read && storage.is_new_only, "{storage:?}");
        // Those of GKE and Compute Engine come with the services, and other members are no agents.
        let all = ["agent:container", "agent:compute", "user:ann@example.com"];
        assert!(all.iter().all(|member| declared(member).is_none()));
    }

    #[test]
    fn agents_have_rows() {
        for (name, ..) in AGENTS {
            assert!(name.starts_with(AGENT) && agent(name).is_ok());
        }
        assert!(agent("agent:nothing").is_err());
    }
}
