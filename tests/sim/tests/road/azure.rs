//! A site in a simulated Azure: the real program, real servers in the pods of a real control plane in place of AKS, and access
//! tokens of the simulator as those of the cluster.

use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use serde_json::Value;
use textnlp_cluster::Cluster;
use textnlp_sim::azure::{AzureCloud, Options};
use textnlp_tests::{Said, counts, said};

use crate::export;
use crate::hosts::{self, Hosts};
use crate::operator::Operator;
use crate::{
    Bucket, GPU_NODES, GPUS, GUIDED, Managed, Variable, guided, managed_life, of_staging, push_and_pull, refused_gpus,
    role_of, whole_life, with_balancer,
};

const REGION: &str = "westeurope";
/// The group of the site and its cluster.
const CLUSTER: &str = "textnlp-staging-here";
/// The roles Storage Blob Data Contributor and Storage Blob Data Reader.
pub(super) const CONTRIBUTOR: &str = "ba92f5b4-2d11-453d-a403-e96b0029c9fe";
const READER: &str = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1";

/// An operator with a subscription that has nothing in it.
struct Subscription {
    operator: Operator,
    cloud: Arc<AzureCloud>,
}

impl Subscription {
    /// `None` where there is no control plane or no PostgreSQL.
    fn new(about: &str) -> Option<Self> {
        let mut operator = of_staging(about)?;
        operator.sets.push("data=disposable".to_owned());
        let cloud = subscription_with(operator.cluster, CLUSTER);
        Some(Self { operator, cloud })
    }

    fn run(&self, args: &[&str], more: &[&str]) -> Said {
        run(&self.operator, &self.cloud, args, more)
    }

    /// The ids of what is in the subscription, which was empty.
    fn left(&self) -> Vec<String> {
        self.cloud.world().ids()
    }
}

fn run(operator: &Operator, cloud: &AzureCloud, args: &[&str], more: &[&str]) -> Said {
    said(command(operator, cloud, args, more).output().unwrap())
}

fn command(operator: &Operator, cloud: &AzureCloud, args: &[&str], more: &[&str]) -> Command {
    let all = [args, &["--provider", "azure"]].concat();
    let mut command = operator.command(&all, more);
    command.env_remove("KUBECONFIG").env("AZURE_DEFAULTS_LOCATION", REGION).envs(cloud.variables());
    command
}

/// The id of the container of models.
pub(super) fn models_container(cloud: &AzureCloud) -> String {
    let mut ids = cloud.world().ids().into_iter();
    ids.find(|id| id.to_lowercase().ends_with("/blobservices/default/containers/models")).unwrap()
}

/// The owner of a subscription may write no blobs before a role on data says so.
fn push_as_one_with_a_role(subscription: &Subscription, hosts: &Hosts) {
    let cloud = &subscription.cloud;
    let container = models_container(cloud);
    let account = container.split('/').nth(8).unwrap().to_owned();
    let of_model = |args: &[&str], variables: &[Variable]| {
        let mut command = command(&subscription.operator, cloud, args, &[]);
        command.env("AZURE_STORAGE_ACCOUNT_NAME", &account).envs(hosts.variables());
        said(command.envs(variables.iter().cloned()).output().unwrap())
    };
    let refused = of_model(&["model", "push", "bundled"], &[]);
    assert!(refused.exit != 0 && refused.err.contains("not authorized to perform this operation"), "{refused:?}");
    let assign = |role: &str, principal: &str| cloud.world().assign(&container, role, principal);
    let assigned = [assign(CONTRIBUTOR, cloud.operator()), assign(READER, "a-reader")];
    let token = |principal: &str| vec![("AZURE_STORAGE_TOKEN", cloud.storage_token_of(principal))];
    let bucket = Bucket {
        scheme: "az",
        folder: subscription.operator.sandbox.folder(),
        run: &of_model,
        reader: token("a-reader"),
        stranger: token("a-stranger"),
    };
    push_and_pull(&bucket);
    cloud.world().objects.retain(|key, _| !assigned.iter().any(|id| id.to_lowercase() == *key));
}

/// A simulated Azure whose cluster of a name, and of a group of that name, is a control plane.
pub(super) fn subscription_with(cluster: &Cluster, name: &str) -> Arc<AzureCloud> {
    started(cluster, name, Options::zero_latency())
}

fn started(cluster: &Cluster, name: &str, options: Options) -> Arc<AzureCloud> {
    let cloud = Arc::new(AzureCloud::start(options));
    cloud.set_cluster_endpoint(cluster.url(), cluster.ca_pem());
    // Who has the role of an administrator on the cluster.
    let known = Arc::downgrade(&cloud);
    let group = format!("/subscriptions/{}/resourceGroups/{name}", cloud.subscription());
    let id = format!("{group}/providers/Microsoft.ContainerService/managedClusters/{name}");
    cluster.identify(move |token| {
        let principal = known.upgrade()?.cluster_user(token, &id)?;
        Some((principal, vec!["system:masters".to_owned()]))
    });
    cloud
}

#[test]
fn a_site_is_made_in_an_empty_subscription_answers_and_is_removed_with_everything() {
    let Some(subscription) = Subscription::new("azure") else { return };
    let plan = subscription.run(&["plan", "-o", "json"], &[]).expect(0).json();
    eprintln!("plan: {:?}, {}", counts(&plan), plan["cost"]["note"]);
    let services = plan["cost"]["services"].as_array().cloned().unwrap_or_default();
    assert!(
        services.iter().any(|one| one["service"].as_str().is_some_and(|name| name.contains("Virtual Machines"))),
        "{:#}",
        plan["cost"]
    );
    let policy = subscription.run(&["plan", "--policy"], &[]).expect(0);
    for action in [
        "Microsoft.ContainerService/managedClusters/write",
        "Microsoft.Network/virtualNetworks/write",
        "Microsoft.Authorization/roleAssignments/write",
    ] {
        assert!(policy.out.contains(action), "{action}: {policy:?}");
    }
    let role = role_of(&subscription.operator, |args| subscription.run(args, &[]));
    assert!(role["Actions"].as_array().is_some_and(|all| all.len() > 20), "{role:#}");
    let hosts = Hosts::start(&[(hosts::AZURE, subscription.cloud.url())]);
    let folder = subscription.operator.sandbox.folder();
    let providers: Vec<String> = (1..=8).map(|place| format!("here/network/provider-{place}")).collect();
    let left: Vec<&str> = providers.iter().map(String::as_str).chain(["here/cluster"]).collect();
    let planned = export::planned(|args| subscription.run(args, &[]), folder, &left);
    export::azure(&planned.main, |id, body| subscription.cloud.check(id, body));
    export::planned_bicep(|args| subscription.run(args, &[]), folder);
    let has_device_plugin = || {
        let plugin = ["get", "daemonset", "textnlp-device-plugin", "--namespace", "kube-system"];
        subscription.operator.cluster.kubectl(&plugin).status.success()
    };
    let models = || {
        push_as_one_with_a_role(&subscription, &hosts);
        let main = export::terraform(|args| subscription.run(args, &[]), folder);
        export::azure(&main, |id, body| subscription.cloud.check(id, body));
        export::same(&planned, |args| subscription.run(args, &[]), folder, &main);
        export::bicep(|args| subscription.run(args, &[]), folder);
    };
    let gpus = || {
        let refused = |says: &str| {
            let refused = subscription.run(&["preflight"], &[GPUS]).expect(1);
            assert!(refused.err.contains(says), "{says}: {refused:?}");
        };
        // A region may have none.
        subscription.cloud.world().restricted.insert((REGION.to_owned(), "Standard_NC4as_T4_v3".to_owned()));
        refused("does not offer Standard_NC4as_T4_v3 to this subscription");
        subscription.cloud.world().restricted.clear();
        // A subscription has none at first. AKS has no device plugin.
        let family = "Standard NCASv3_T4 Family".to_owned();
        refused(&family);
        subscription.cloud.world().quotas.insert((REGION.to_owned(), family), 100);
        let parts = [GPU_NODES, "here/cluster/device-plugin"];
        refused_gpus(|args, more| subscription.run(args, more), folder, &parts);
        assert!(has_device_plugin());
    };
    whole_life(|args, more| subscription.run(args, more), || subscription.left(), models, gpus);
    assert!(!has_device_plugin(), "it is outside of the namespace");
    assert_eq!(subscription.cloud.violations(), Vec::<String>::new());
}

/// The primary key of the cache of the site, with which the pods have its address.
fn key_of_cache(cloud: &AzureCloud, operator: &Operator) -> String {
    let (host, key) = {
        let world = cloud.world();
        let is_database = |id: &str| id.contains("/redisenterprise/") && id.ends_with("/databases/default");
        let (id, database) = world.objects.iter().find(|(id, _)| is_database(id)).unwrap();
        let cluster = &world.objects[id.trim_end_matches("/databases/default")];
        let host = cluster.body["properties"]["hostName"].as_str().unwrap().to_owned();
        (host, database.body["$keys"]["primaryKey"].as_str().unwrap().to_owned())
    };
    let secret = operator.get("secret", "textnlp-secrets");
    let encoded = secret["data"]["cache-url"].as_str().unwrap();
    let address = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    let escaped = key.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let expected = format!("rediss://:{escaped}@{host}:10000");
    assert!(String::from_utf8(address).unwrap() == expected, "the servers have another address of the cache");
    key
}

#[test]
fn the_guide_leads_to_pods_of_a_pushed_image_with_a_managed_database() {
    let Some(mut operator) = Operator::new("azuredb") else { return };
    let managed = Managed::start(&operator);
    with_balancer(&mut operator, "203.0.113.30");
    let subscription = "00000000-0000-0000-0000-000000000000".to_owned();
    let cloud = started(operator.cluster, GUIDED, Options { subscription, ..Options::zero_latency() });
    {
        let mut world = cloud.world();
        world.stand = Some(managed.stand());
        world.put_zone("dns", "example.com", false);
    }
    let before = cloud.world().ids();
    let records = || cloud.world().ids().iter().filter(|id| id.contains("/dnsZones/")).count();
    let repository = "myservice.azurecr.io/textnlp";
    let pushed = |tag: &str| cloud.world().registry.repositories.get(repository)?.images.get(tag).cloned();
    operator.sets.extend(["cache.kind=redis", "cache.hosting=managed"].map(str::to_owned));
    let section = ("docs/guide/azure.md", "From an empty subscription");
    let follower = guided(&operator, section, cloud.variables());
    let is_encrypted = || {
        let world = cloud.world();
        let is_with_key = |body: &Value| body["properties"]["securityProfile"]["azureKeyVaultKms"]["enabled"] == true;
        world.objects.values().any(|one| is_with_key(&one.body))
    };
    let holds = || {
        assert!(is_encrypted(), "the secrets are encrypted");
        let before = key_of_cache(&cloud, &operator);
        follower.about("secret rotate cache --no-gate -o json").expect(0);
        assert_ne!(key_of_cache(&cloud, &operator), before);
    };
    managed_life((&operator, &follower), &managed, repository, pushed, records, holds);
    assert_eq!(cloud.world().ids(), before);
    assert_eq!(cloud.violations(), Vec::<String>::new());
}
