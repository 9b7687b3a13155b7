//! A site in a simulated Google Cloud: the real program, real servers in the pods of a real control plane that stands in for GKE, and
//! access tokens of the simulator as those of the cluster.

use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use serde_json::{Value, json};
use textnlp_cluster::Cluster;
use textnlp_sim::gcp::{GoogleCloud, Options};
use textnlp_tests::{Said, counts, said};

use crate::export;
use crate::hosts::{self, Hosts};
use crate::operator::Operator;
use crate::{
    Bucket, GPU_NODES, GPUS, GUIDED, Managed, Variable, guided, managed_life, of_staging, push_and_pull, refused_gpus,
    role_of, whole_life, with_balancer,
};

const REGION: &str = "europe-west4";
/// The project and the zone of the guides.
const PROJECT: &str = "my-project";
const MANAGED_ZONE: &str = "my-zone";

/// An operator with a project that has nothing in it.
struct Project {
    operator: Operator,
    cloud: Arc<GoogleCloud>,
}

impl Project {
    /// `None` where there is no control plane or no PostgreSQL.
    fn new(about: &str) -> Option<Self> {
        let mut operator = of_staging(about)?;
        operator.sets.push("data=disposable".to_owned());
        let cloud = project_with(operator.cluster);
        Some(Self { operator, cloud })
    }

    fn run(&self, args: &[&str], more: &[&str]) -> Said {
        run(&self.operator, &self.cloud, args, more)
    }

    fn left(&self) -> Vec<String> {
        left(&self.cloud)
    }
}

fn run(operator: &Operator, cloud: &GoogleCloud, args: &[&str], more: &[&str]) -> Said {
    said(command(operator, cloud, args, more).output().unwrap())
}

fn command(operator: &Operator, cloud: &GoogleCloud, args: &[&str], more: &[&str]) -> Command {
    let all = [args, &["--provider", "gcp"]].concat();
    let mut command = operator.command(&all, more);
    command.env_remove("KUBECONFIG").env("CLOUDSDK_COMPUTE_REGION", REGION).envs(cloud.variables());
    command
}

/// Lets a user read the only bucket.
fn grant_reading(cloud: &GoogleCloud, user: &str) {
    let mut world = cloud.world();
    let key = world.keys().into_iter().find(|key| key.starts_with("storage/")).unwrap();
    let bucket = key.rsplit('/').next().unwrap();
    world.grant_on_bucket(bucket, "roles/storage.objectViewer", &format!("user:{user}"));
}

/// A simulated Google Cloud whose cluster is a control plane.
pub(super) fn project_with(cluster: &Cluster) -> Arc<GoogleCloud> {
    started(cluster, Options::zero_latency())
}

/// The same with the project of the guides, which has a zone of `example.com` and the APIs of its records.
pub(super) fn project_with_zone(cluster: &Cluster) -> Arc<GoogleCloud> {
    let services = ["compute.googleapis.com", "dns.googleapis.com"].map(str::to_owned).into();
    let cloud = started(cluster, Options { project: PROJECT.to_owned(), services, ..Options::zero_latency() });
    cloud.world().put_zone(PROJECT, MANAGED_ZONE, "example.com.", false);
    cloud
}

fn started(cluster: &Cluster, options: Options) -> Arc<GoogleCloud> {
    let cloud = Arc::new(GoogleCloud::start(options));
    cloud.set_cluster_endpoint(cluster.url(), cluster.ca_pem());
    // The project's owner is an administrator of its clusters.
    let known = Arc::downgrade(&cloud);
    cluster.identify(move |token| {
        let email = known.upgrade()?.email_of(token)?;
        Some((email, vec!["system:masters".to_owned()]))
    });
    cloud
}

/// The names of objects that carry a lineage in labels or in their description, without keys, which Google never deletes.
pub(super) fn left(cloud: &GoogleCloud) -> Vec<String> {
    let world = cloud.world();
    let keys = world.keys().into_iter();
    let ours = keys.filter(|key| {
        world.get(key).is_some_and(|body| body.to_string().contains("textnlp-lineage")) && !key.starts_with("cloudkms/")
    });
    ours.collect()
}

#[test]
fn a_site_is_made_in_an_empty_project_answers_and_is_removed_with_everything() {
    let Some(project) = Project::new("gcp") else { return };
    let plan = project.run(&["plan", "-o", "json"], &[]).expect(0).json();
    eprintln!("plan: {:?}, {}", counts(&plan), plan["cost"]["note"]);
    let services = plan["cost"]["services"].as_array().cloned().unwrap_or_default();
    assert!(
        services.iter().any(|one| one["service"].as_str().is_some_and(|name| name.contains("Kubernetes"))),
        "{:#}",
        plan["cost"]
    );
    let policy = project.run(&["plan", "--policy"], &[]).expect(0);
    for permission in ["container.clusters.create", "compute.networks.create", "iam.serviceAccounts.create"] {
        assert!(policy.out.contains(permission), "{permission}: {policy:?}");
    }
    let role = role_of(&project.operator, |args| project.run(args, &[]));
    assert!(role["includedPermissions"].as_array().is_some_and(|all| all.len() > 20), "{role:#}");
    let folder = project.operator.sandbox.folder();
    let planned = export::planned(|args| project.run(args, &[]), folder, &[]);
    export::google(&planned.main);
    let protected = export::planned(|args| project.run(args, &["data=protected"]), &folder.join("protected"), &[]);
    export::google_keys(&protected.main);
    let hosts = Hosts::start(&[(hosts::GOOGLE, project.cloud.url())]);
    let of_model = |args: &[&str], variables: &[Variable]| {
        let mut command = command(&project.operator, &project.cloud, args, &[]);
        said(command.envs(hosts.variables()).envs(variables.iter().cloned()).output().unwrap())
    };
    let token = |user: &str| vec![("GOOGLE_BEARER_TOKEN", project.cloud.token_of(user))];
    let models = || {
        grant_reading(&project.cloud, "reader@example.com");
        let bucket = Bucket {
            scheme: "gs",
            folder: project.operator.sandbox.folder(),
            run: &of_model,
            reader: token("reader@example.com"),
            stranger: token("stranger@example.com"),
        };
        push_and_pull(&bucket);
        let main = export::terraform(|args| project.run(args, &[]), folder);
        export::google(&main);
        export::same(&planned, |args| project.run(args, &[]), folder, &main);
    };
    let gpus = || {
        // A region may have none.
        let is_gpu = |key: &str| key.ends_with("/acceleratorTypes/nvidia-tesla-t4");
        let all = project.cloud.world().objects.clone();
        project.cloud.world().objects.retain(|key, _| !is_gpu(key));
        let refused = project.run(&["preflight"], &[GPUS]).expect(1);
        assert!(refused.err.contains(&format!("no zone of {REGION} has n1-standard-4 with its GPU")), "{refused:?}");
        project.cloud.world().objects.extend(all.into_iter().filter(|(key, _)| is_gpu(key)));
        // A project has none at first.
        let refused = project.run(&["preflight"], &[GPUS]).expect(1);
        assert!(refused.err.contains("GPUS_ALL_REGIONS"), "{refused:?}");
        project.cloud.world().quotas.insert((String::new(), "GPUS_ALL_REGIONS".to_owned()), 4.0);
        let plan = refused_gpus(|args, more| project.run(args, more), folder, &[GPU_NODES]);
        let mut lines = plan["cost"]["lines"].as_array().unwrap().iter();
        let is_priced = |line: &Value| line["resource"] == GPU_NODES && line["monthly"].as_f64() > Some(0.0);
        assert!(lines.any(is_priced), "{:#}", plan["cost"]);
    };
    whole_life(|args, more| project.run(args, more), || project.left(), models, gpus);
    assert_eq!(project.cloud.violations(), Vec::<String>::new());
}

/// The Secret of the servers has the address of the instance, with the AUTH string that Google generated, and its authority.
fn pods_reach_the_cache(cloud: &GoogleCloud, operator: &Operator) {
    let (address, authority) = {
        let world = cloud.world();
        let key = world.keys().into_iter().find(|key| key.starts_with("redis/")).unwrap();
        let (login, body) = (world.auth_string(&key).unwrap(), world.get(&key).unwrap());
        assert_eq!((&body["tier"], &body["authEnabled"]), (&json!("BASIC"), &json!(true)));
        let address = format!("rediss://:{login}@{}:{}", body["host"].as_str().unwrap(), body["port"]);
        (address, body["serverCaCerts"][0]["cert"].as_str().unwrap().to_owned())
    };
    let secret = operator.get("secret", "textnlp-secrets");
    let file = |name: &str| {
        let text = base64::engine::general_purpose::STANDARD.decode(secret["data"][name].as_str().unwrap()).unwrap();
        String::from_utf8(text).unwrap()
    };
    assert!(file("cache-url") == address, "the servers have another address of the cache");
    assert_eq!(file("cache-ca.pem"), authority);
}

#[test]
fn the_guide_leads_to_pods_of_a_pushed_image_with_a_managed_database() {
    let Some(mut operator) = Operator::new("gcpdb") else { return };
    let managed = Managed::start(&operator);
    with_balancer(&mut operator, "203.0.113.20");
    let cloud = started(operator.cluster, Options { project: PROJECT.to_owned(), ..Options::zero_latency() });
    {
        let mut world = cloud.world();
        world.stand = Some(managed.stand());
        world.enable(PROJECT, "dns.googleapis.com");
        world.put_zone(PROJECT, MANAGED_ZONE, "example.com.", false);
    }
    let records = || cloud.world().keys().iter().filter(|key| key.contains("/rrsets/")).count();
    let repository = "my-project/textnlp/server";
    let pushed = |tag: &str| cloud.world().registry.repositories.get(repository)?.images.get(tag).cloned();
    operator.sets.extend(["cache.kind=redis", "cache.hosting=managed"].map(str::to_owned));
    let section = ("docs/guide/gcp.md", "From an empty project");
    let follower = guided(&operator, section, cloud.variables());
    let is_encrypted = || {
        let world = cloud.world();
        let of_cluster = |key: &String| key.ends_with(&format!("/clusters/{GUIDED}"));
        let body = world.keys().into_iter().find(of_cluster).and_then(|key| world.get(&key).cloned());
        let pools = world.keys().into_iter().filter(|key| key.contains(&format!("/clusters/{GUIDED}/nodePools/")));
        let mut pools = pools.filter_map(|key| world.get(&key).cloned());
        body.is_some_and(|body| body["databaseEncryption"]["state"] == "ENCRYPTED")
            && pools.all(|pool| pool["config"]["bootDiskKmsKey"].is_string())
    };
    let repository = format!("{REGION}-docker.pkg.dev/{repository}");
    managed_life((&operator, &follower), &managed, &repository, pushed, records, || {
        assert!(is_encrypted(), "the secrets and the disks of nodes are encrypted");
        pods_reach_the_cache(&cloud, &operator);
        let refused = follower.about("secret rotate cache --no-gate").expect(2);
        assert!(refused.err.contains("has not generated the password of the cache"), "{refused:?}");
    });
    assert_eq!(left(&cloud), Vec::<String>::new());
    assert_eq!(cloud.violations(), Vec::<String>::new());
}
