//! The servers as an online endpoint of Azure Machine Learning: a workspace with what it needs, the image as an environment, and a
//! deployment of it at the endpoint, which gets the requests.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_cloud::names::hash;
use textnlp_cloud::{ContainerHost, is_fetched};
use textnlp_provider::ResourceId;
use textnlp_provider::component::InferenceEndpoint;

use super::models::{PART, READER_ROLE, account_spec};
use super::registry::{PULL, REPOSITORY};
use super::{Lowering, MODELS, SERVER_IDENTITY, output};
use crate::kinds::identity::BLOB_READER;
use crate::kinds::machine_learning::{AUTOSCALE, DEPLOYMENT, ENDPOINT, ENVIRONMENT, TRAFFIC, WORKSPACE};
use crate::kinds::storage::ACCOUNT_NAME;
use crate::names;
use crate::tables::machines::{self, SERVING, SERVING_SIZE, ServingSize};
use crate::transport::REGISTRIES;

/// The port of containers, and a folder in their disk. No document says how long a container has after SIGTERM, nor how long all its
/// variables may be: as long as on Vertex AI.
const HOST: ContainerHost = ContainerHost {
    name: "Azure Machine Learning",
    server: "TEXTNLP_AZURE_ML_SERVER",
    models: "TEXTNLP_AZURE_ML_MODELS",
    most: 64 * 1024,
    listen: "0.0.0.0:8080",
    folder: "/tmp/textnlp",
    drain_seconds: 8,
    bucket: "az",
};
/// The most characters of the names of an identity and of an autoscaling setting.
const MOST: usize = 63;
/// The name of the image in a workspace, and the start of the name of a deployment.
const SERVERS: &str = "servers";
const RELEASE: &str = "release";
/// The longest request, and that of a server without a setting, in seconds
/// (<https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas#azure-machine-learning-online-endpoints-and-batch-endpoints>).
const MOST_SECONDS: u64 = 180;
/// The requests that a machine gets at the same time. As many more wait, and what is beyond is refused with 429
/// (<https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints#http-status-codes>). A server has a queue of
/// its own.
const CONCURRENCY: u32 = 32;
/// How long a container may take until it answers `/ping`, with models in the image and with models to fetch.
const STARTUP_SECONDS: u32 = 900;
const FETCH_SECONDS: u32 = 5_400;
/// The most machines of a deployment.
const MOST_INSTANCES: u32 = 50;
/// Days for which the vault of a workspace can be recovered: the least. It holds nothing of the servers.
const VAULT_DAYS: u32 = 7;
/// The metric of the requests to an endpoint, and those of the use of CPUs and GPUs, in percent, with the bounds of the guide
/// (<https://learn.microsoft.com/azure/machine-learning/how-to-autoscale-endpoints>,
/// <https://learn.microsoft.com/azure/machine-learning/how-to-monitor-online-endpoints#available-metrics>).
const REQUESTS: &str = "RequestsPerMinute";
const CPU: &str = "CpuUtilizationPercentage";
const GPU: &str = "GpuUtilizationPercentage";
const ABOVE_PERCENT: u32 = 70;
const BELOW_PERCENT: u32 = 30;

impl Lowering<'_> {
    pub(super) fn serving(&mut self, endpoint: &InferenceEndpoint) {
        let container = self.server_container(endpoint);
        let machine = self.serving_machine(endpoint);
        let most = endpoint.autoscaling.as_ref().map_or(endpoint.replicas, |autoscaling| autoscaling.max);
        if endpoint.replicas == 0 {
            self.problem("replicas", "a deployment has one machine at least", "write `scaling.min: 1`");
        }
        if most > MOST_INSTANCES {
            let cause = format!("a deployment has at most {MOST_INSTANCES} machines, and not {most}");
            self.problem("replicas", cause, format!("write `scaling.max: {MOST_INSTANCES}`"));
        }
        let (Some((image, mut variables)), Some(machine)) = (container, machine) else { return };
        self.group();
        let identity = self.of_group(json!({ "name": names::of(self.site, "server", MOST) }));
        let Some(identity) = self.part(SERVER_IDENTITY, "azure.identity", identity) else { return };
        let Some(workspace) = self.workspace(&identity) else { return };
        let reads = endpoint.models.iter().any(|model| model.source.starts_with("az:"));
        if reads {
            variables["AZURE_CLIENT_ID"] = output(&identity, "client");
            variables["AZURE_STORAGE_ACCOUNT_NAME"] = self.output_of(MODELS, PART, ACCOUNT_NAME);
        }
        let environment = self.part(
            "environment",
            ENVIRONMENT,
            // A version never changes, so that its name follows from the image.
            json!({ "workspace": output(&workspace, "id"), "name": SERVERS, "version": hash(&image), "image": image }),
        );
        let made = self.part(
            "endpoint",
            ENDPOINT,
            json!({
                "workspace": output(&workspace, "id"),
                "name": names::online_endpoint(self.site),
                "location": self.site.region,
                "identity": output(&identity, "id"),
            }),
        );
        let (Some(environment), Some(made)) = (environment, made) else { return };
        let fetches = endpoint.models.iter().any(is_fetched);
        let deployment = self.part(
            "deployment",
            DEPLOYMENT,
            json!({
                "endpoint": output(&made, "id"),
                "name": RELEASE,
                "location": self.site.region,
                "environment": output(&environment, "id"),
                "variables": variables,
                "machine": machine.name,
                "instances": { "min": endpoint.replicas, "max": most },
                "timeout_seconds": seconds(endpoint),
                "concurrency": CONCURRENCY,
                "start_seconds": if fetches { FETCH_SECONDS } else { STARTUP_SECONDS },
            }),
        );
        // Its machines pull the image and read the models once they start.
        let is_of_azure = image.split_once('/').is_some_and(|(host, _)| host.ends_with(REGISTRIES));
        let holder = endpoint.image_in.as_ref().filter(|_| is_of_azure);
        for (registry, part) in [(endpoint.registry.as_ref(), REPOSITORY), (holder, PULL)] {
            self.after(registry.and_then(|registry| ResourceId::part(&self.site.name, registry, part).ok()));
        }
        self.after(self.part_of(MODELS, READER_ROLE).filter(|_| reads));
        self.after(self.part_of(self.component.name.as_str(), STORAGE_ROLE));
        let Some(deployment) = deployment else { return };
        let autoscale = self.autoscale(endpoint, machine, &made, &deployment);
        let traffic = json!({ "endpoint": output(&made, "id"), "deployment": output(&deployment, "id") });
        self.part("traffic", TRAFFIC, traffic);
        // A deployment has its autoscaling before it gets requests.
        self.after(autoscale);
    }

    /// The image by its digest, and the variables of its containers.
    fn server_container(&mut self, endpoint: &InferenceEndpoint) -> Option<(String, Value)> {
        match HOST.container(endpoint, BTreeMap::new(), "NAME.azurecr.io/textnlp") {
            Ok((image, variables)) => Some((image, json!(variables))),
            Err(problems) => {
                problems.into_iter().for_each(|(field, cause, fix)| self.problem(field, cause, fix));
                None
            }
        }
    }

    /// A workspace with a storage account and a vault of its own, in which the servers have nothing. Their identity has to read the
    /// account all the same (<https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints#authorization-error>).
    fn workspace(&mut self, identity: &ResourceId) -> Option<ResourceId> {
        let mut storage = account_spec(&names::storage(self.site, "workspace"), &self.site.region, false);
        (storage["versioned"], storage["soft_delete_days"]) = (json!(false), json!(0));
        let storage = self.part("storage", "azure.storage", self.of_group(storage))?;
        self.role(STORAGE_ROLE, &output(&storage, "id"), BLOB_READER, &output(identity, "principal"));
        let vault = json!({ "name": names::workspace_vault(self.site), "soft_delete_days": VAULT_DAYS });
        let vault = self.part("vault", "azure.vault", self.of_group(vault))?;
        let workspace = self.of_group(json!({
            "name": names::workspace(self.site),
            "storage": output(&storage, "id"),
            "vault": output(&vault, "id"),
        }));
        self.part("workspace", WORKSPACE, workspace)
    }

    /// The machines of a deployment.
    fn serving_machine(&mut self, endpoint: &InferenceEndpoint) -> Option<&'static ServingSize> {
        let named = endpoint.instance_type.as_deref();
        let usual = endpoint.gpu.map_or(Some(SERVING_SIZE), |size| machines::of_size(size).map(|machine| machine.name));
        let fits = |one: &&ServingSize| (one.gpus > 0) == endpoint.gpu.is_some();
        let found = named.or(usual).and_then(machines::serving_named).filter(fits);
        if found.is_none() {
            let known: Vec<&str> = SERVING.iter().filter(fits).map(|one| one.name).collect();
            let with = if endpoint.gpu.is_some() { "with" } else { "without" };
            let cause =
                format!("`{}` is no size {with} GPUs that the servers run on", named.or(usual).unwrap_or_default());
            let fix =
                format!("choose one of {}; with `gpu: {{ size: large }}` one with GPUs is chosen", known.join(", "));
            self.problem("instance_type", cause, fix);
        }
        found
    }

    /// The autoscaling of the deployment, if its number of machines is not fixed.
    fn autoscale(
        &mut self,
        endpoint: &InferenceEndpoint,
        machine: &ServingSize,
        made: &ResourceId,
        deployment: &ResourceId,
    ) -> Option<ResourceId> {
        let autoscaling = endpoint.autoscaling.as_ref()?;
        // Those of an endpoint are of all its machines.
        let (metric, resource, divided, above, below) = match autoscaling.requests_per_second {
            Some(each) => {
                let above = f64::from(each) * 60.0;
                (REQUESTS, made, true, above, above / 2.0)
            }
            None => {
                let metric = if machine.gpus > 0 { GPU } else { CPU };
                (metric, deployment, false, f64::from(ABOVE_PERCENT), f64::from(BELOW_PERCENT))
            }
        };
        let spec = self.of_group(json!({
            "name": names::of(self.site, "server", MOST),
            "target": output(deployment, "id"),
            "scaling": {
                "min": endpoint.replicas,
                "max": autoscaling.max,
                "metric": metric,
                "resource": output(resource, "id"),
                "divided": divided,
                "above": above,
                "below": below,
            },
            "enabled": true,
        }));
        self.part("autoscale", AUTOSCALE, spec)
    }
}

/// The part that is the role on the storage account of the workspace.
const STORAGE_ROLE: &str = "storage-role";

/// The longest request.
fn seconds(endpoint: &InferenceEndpoint) -> u64 {
    endpoint.config["textnlp"]["api"]["timeout"].as_u64().unwrap_or(MOST_SECONDS).clamp(1, MOST_SECONDS)
}

#[cfg(test)]
mod tests {
    use textnlp_provider::cluster::ResourceAmounts;
    use textnlp_provider::component::{Autoscaling, ComponentSpec, Model, ModelStore, Registry, ServiceLimits};
    use textnlp_provider::settings::{GpuSize, Runtime};
    use textnlp_provider::{Site, Wanted};

    use super::super::lower;
    use super::super::tests::{component, site};
    use super::*;

    fn of(protect_data: bool) -> Site {
        Site { runtime: Runtime::AzureMl, ..site(protect_data) }
    }

    fn endpoint() -> InferenceEndpoint {
        let model = |name: &str, source: &str| Model { digest: Some("sha256:1".to_owned()), ..Model::of(name, source) };
        InferenceEndpoint {
            replicas: 1,
            autoscaling: None,
            gpu: None,
            resources: ResourceAmounts::default(),
            instance_type: None,
            image: Some("textnlpstaging.azurecr.io/text:1@sha256:2".to_owned()),
            registry: Some("registry".parse().unwrap()),
            image_in: Some("registry".parse().unwrap()),
            config: json!({ "textnlp": { "api": { "timeout": 300 }, "models": { "serve": [{ "name": "tiny" }] } } }),
            models: vec![model("tiny", "bundled")],
            max_cache_bytes: 1,
            permission_boundary: None,
            limits: ServiceLimits::default(),
            shift: None,
            monitoring: None,
        }
    }

    fn expand(endpoint: InferenceEndpoint) -> Result<BTreeMap<String, Wanted>, String> {
        let all = lower(&component("server", ComponentSpec::InferenceEndpoint(endpoint)), &of(true));
        let all = all.map_err(|problems| problems.to_string())?;
        let part = |one: Wanted| (one.id.as_str().trim_start_matches("main/server/").to_owned(), one);
        Ok(all.into_iter().map(part).collect())
    }

    #[test]
    fn an_endpoint_has_a_workspace_a_deployment_of_the_image_and_all_traffic_at_it() {
        let autoscaling = Autoscaling { max: 4, cpu: None, memory: None, requests_per_second: Some(5) };
        let model = Model { digest: Some("sha256:1".to_owned()), ..Model::of("mine", "az://models/mine/") };
        let wanted = InferenceEndpoint { autoscaling: Some(autoscaling), models: vec![model], ..endpoint() };
        let all = expand(wanted).unwrap();
        let spec = |part: &str| all[part].spec.as_value().clone();
        let needs = |part: &str, on: &str| all[part].needs.iter().any(|need| need.on.as_str() == on);
        assert_eq!(spec("environment")["image"], "textnlpstaging.azurecr.io/text@sha256:2");
        let deployment = spec("deployment");
        assert!(deployment["variables"]["TEXTNLP_AZURE_ML_SERVER_0"].as_str().unwrap().contains("/tmp/textnlp"));
        assert_eq!(
            deployment["variables"]["AZURE_STORAGE_ACCOUNT_NAME"],
            json!({ "$output": "main/models/container#account" })
        );
        assert_eq!(
            (&deployment["machine"], &deployment["timeout_seconds"], &deployment["start_seconds"]),
            (&json!("Standard_DS3_v2"), &json!(180), &json!(5400))
        );
        assert_eq!(deployment["instances"], json!({ "min": 1, "max": 4 }));
        for on in
            ["registry/repository", "registry/pull", "models/reader-role", "server/storage-role", "server/environment"]
        {
            assert!(needs("deployment", &format!("main/{on}")), "{on}: {:?}", all["deployment"].needs);
        }
        let scaling = &spec("autoscale")["scaling"];
        assert_eq!(
            (&scaling["metric"], &scaling["above"], &scaling["below"]),
            (&json!(REQUESTS), &json!(300.0), &json!(150.0))
        );
        assert_eq!(scaling["resource"], json!({ "$output": "main/server/endpoint#id" }));
        assert_eq!(spec("traffic")["deployment"], json!({ "$output": "main/server/deployment#id" }));
        assert!(needs("traffic", "main/server/autoscale") && needs("identity", "main/server/group"));
        assert_eq!(all.keys().filter(|part| part.starts_with("provider-")).count(), 8);
        assert_eq!(spec("workspace")["tags"], json!({ "team": "text" }));
    }

    #[test]
    fn a_deployment_waits_for_the_right_to_pull_only_from_a_registry_of_the_site() {
        let needs = |image: &str, image_in: Option<&str>| {
            let (image, image_in) = (Some(image.to_owned()), image_in.map(|name| name.parse().unwrap()));
            let all = expand(InferenceEndpoint { image, image_in, registry: None, ..endpoint() }).unwrap();
            all["deployment"].needs.iter().any(|need| need.on.as_str() == "main/registry/pull")
        };
        let digest = "sha256:2";
        assert!(needs(&format!("textnlpstaging.azurecr.io/cuda@{digest}"), Some("registry")));
        assert!(!needs(&format!("others.azurecr.io/cuda@{digest}"), None));
        assert!(!needs(&format!("r.example/cuda@{digest}"), Some("registry")), "it has no such part");
    }

    #[test]
    fn another_image_is_another_version_and_other_variables_are_not() {
        let version =
            |endpoint: InferenceEndpoint| expand(endpoint).unwrap()["environment"].spec.get("version").cloned();
        let usual = version(endpoint());
        assert_eq!(usual, version(InferenceEndpoint { config: json!({ "textnlp": { "api": {} } }), ..endpoint() }));
        let image = Some("textnlpstaging.azurecr.io/text:2@sha256:3".to_owned());
        assert_ne!(usual, version(InferenceEndpoint { image, ..endpoint() }));
    }

    #[test]
    fn the_identity_of_the_servers_pulls_the_image_and_reads_the_models() {
        let registry = Registry { url: "textnlpstaging.azurecr.io/text".to_owned(), image: None };
        let all = lower(&component("registry", ComponentSpec::Registry(registry)), &of(false)).unwrap();
        let principal = json!({ "$output": "main/server/identity#principal" });
        let pull = all.iter().find(|one| one.id.as_str() == "main/registry/pull").unwrap();
        assert_eq!(pull.spec.get("principal"), Some(&principal));
        let store = || ModelStore::of(vec![Model::of("mine", "az://models/mine/")]);
        let all = lower(&component("models", ComponentSpec::ModelStore(store())), &of(true)).unwrap();
        let ids: Vec<&str> = all.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(ids, ["main/models/account", "main/models/container", "main/models/reader-role"], "and no key");
        assert_eq!(all[2].spec.get("principal"), Some(&principal));
        assert!(all[0].needs.iter().any(|need| need.on.as_str() == "main/server/group"), "{:?}", all[0].needs);
    }

    #[test]
    fn machines_are_those_that_azure_machine_learning_deploys_to() {
        let machine = |gpu: Option<GpuSize>, name: Option<&str>| {
            let wanted = InferenceEndpoint { gpu, instance_type: name.map(str::to_owned), ..endpoint() };
            expand(wanted).map(|all| all["deployment"].spec.get("machine").cloned().unwrap_or_default())
        };
        for (gpu, name, expected) in [
            (None, Some("standard_f8s_v2"), "Standard_F8s_v2"),
            (Some(GpuSize::Small), None, "Standard_NC4as_T4_v3"),
            (Some(GpuSize::Large), None, "Standard_NC24ads_A100_v4"),
            (Some(GpuSize::Xlarge), Some("Standard_ND96isr_H100_v5"), "Standard_ND96isr_H100_v5"),
        ] {
            assert_eq!(machine(gpu, name), Ok(json!(expected)));
        }
        for (gpu, name) in [
            (None, "Standard_NC4as_T4_v3"),
            (None, "Standard_D4s_v5"),
            (Some(GpuSize::Large), "Standard_F8s_v2"),
            (Some(GpuSize::Large), "Standard_ND96isr_H200_v5"),
        ] {
            let refused = machine(gpu, Some(name)).unwrap_err();
            assert!(refused.contains(name) && refused.contains("choose one of"), "{refused}");
        }
    }

    #[test]
    fn what_azure_machine_learning_cannot_run_is_refused_with_the_reason() {
        let local = Model { digest: Some("sha256:1".to_owned()), ..Model::of("tiny", "file:/m") };
        let many = Autoscaling { max: 51, cpu: None, memory: None, requests_per_second: None };
        for (wanted, says) in [
            (InferenceEndpoint { image: None, ..endpoint() }, "there is no image"),
            (InferenceEndpoint { models: vec![local], ..endpoint() }, "Azure Machine Learning does not reach"),
            (InferenceEndpoint { replicas: 0, ..endpoint() }, "write `scaling.min: 1`"),
            (InferenceEndpoint { autoscaling: Some(many), ..endpoint() }, "at most 50 machines"),
        ] {
            let problems = expand(wanted).unwrap_err();
            assert!(problems.contains(says), "{says}: {problems}");
        }
    }

    #[test]
    fn without_requests_per_second_machines_are_added_by_their_use() {
        let metric = |gpu: Option<GpuSize>| {
            let autoscaling = Autoscaling { max: 4, cpu: None, memory: None, requests_per_second: None };
            let all = expand(InferenceEndpoint { autoscaling: Some(autoscaling), gpu, ..endpoint() }).unwrap();
            all["autoscale"].spec.as_value()["scaling"]["metric"].clone()
        };
        assert_eq!((metric(None), metric(Some(GpuSize::Small))), (json!(CPU), json!(GPU)));
    }
}
