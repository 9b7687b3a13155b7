//! The servers as a service of Cloud Run: its image, the account that it runs as, and the one that may call it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_cloud::ContainerHost;
use textnlp_provider::ResourceId;
use textnlp_provider::component::InferenceEndpoint;

use super::{Lowering, MODELS, output};
use crate::kinds::run::SERVICE;
use crate::names;
use crate::service::Service;

/// The port of containers, a folder in their memory, and their end ten seconds after SIGTERM
/// (<https://cloud.google.com/run/docs/container-contract>). The variables of the server have 100 pieces at most.
const HOST: ContainerHost = ContainerHost {
    name: "Cloud Run",
    server: "TEXTNLP_CLOUD_RUN_SERVER",
    models: "TEXTNLP_CLOUD_RUN_MODELS",
    most: 64 * 1024,
    listen: "0.0.0.0:8080",
    folder: "/tmp/textnlp",
    drain_seconds: 8,
    bucket: "gs",
};
/// The services that such a site needs.
const NEEDED: [Service; 8] = [
    Service::ArtifactRegistry,
    Service::CloudBilling,
    Service::CloudKms,
    Service::Iam,
    Service::IamCredentials,
    Service::ResourceManager,
    Service::Run,
    Service::Storage,
];
/// The role that calls a service.
const INVOKER: &str = "roles/run.invoker";
/// The CPUs that an instance can have, each with its least and its most memory in MiB
/// (<https://cloud.google.com/run/docs/configuring/services/cpu>); the second generation of execution environments has 512 at least.
const SIZES: [(u32, u64, u64); 5] =
    [(1, 512, 4096), (2, 512, 8192), (4, 2048, 16_384), (6, 4096, 24_576), (8, 4096, 32_768)];
/// An instance where the environment states none. The files of the models are in its memory too.
const CPU: u32 = 4;
const MEMORY_MIB: u64 = 16_384;
/// The GPU of an instance, and the least CPUs and memory that it has
/// (<https://cloud.google.com/run/docs/configuring/services/gpu>).
const GPU: &str = "nvidia-l4";
const LEAST_WITH_GPU: (u32, u64) = (4, 16_384);
/// The regions that have it, from the same page. Another one, `asia-south1`, has it by invitation.
const GPU_REGIONS: [&str; 5] = ["asia-southeast1", "europe-west1", "europe-west4", "us-central1", "us-east4"];
/// The requests that an instance answers at the same time; Cloud Run adds instances for more of them.
const CONCURRENCY: u32 = 16;
/// The longest request of Cloud Run, which is that of Vertex AI too, and that of a server without a setting, in seconds.
const MOST_SECONDS: u64 = 3600;
const SECONDS: u64 = 300;
/// The bytes of a MiB.
const MIB: u64 = 1 << 20;

impl Lowering<'_> {
    /// What `host` runs: the image by its digest, and the variables of the container.
    pub(super) fn container(&mut self, host: &ContainerHost, endpoint: &InferenceEndpoint) -> Option<(String, Value)> {
        let registry = format!("{}-docker.pkg.dev/{}/textnlp/server", self.site.region, self.site.account);
        match host.container(endpoint, BTreeMap::new(), &registry) {
            Ok((image, variables)) => Some((image, json!(variables))),
            Err(problems) => {
                problems.into_iter().for_each(|(field, cause, fix)| self.problem(field, cause, fix));
                None
            }
        }
    }

    /// The enabled services of the project, and the account that the servers run as.
    pub(super) fn servers(&mut self, needed: &[Service]) -> Option<ResourceId> {
        let apis: Vec<&str> = needed.iter().map(|service| service.api()).collect();
        self.part("services", "gcp.services", self.of_project(json!({ "services": apis })));
        let name = names::of(self.site, "server", names::MOST_OF_ACCOUNT);
        self.account("account", name, "servers")
    }

    fn account(&mut self, part: &str, name: String, what: &str) -> Option<ResourceId> {
        let place = format!("{} at {}", self.site.environment, self.site.name);
        let account = json!({ "name": name, "display_name": format!("{what} of {place}") });
        self.part(part, "gcp.service-account", self.of_project(account))
    }

    /// Adds to the last resource that the image is pushed before it.
    pub(super) fn after_push(&mut self, endpoint: &InferenceEndpoint) {
        let pushed = endpoint.registry.as_ref();
        self.after(pushed.and_then(|registry| ResourceId::part(&self.site.name, registry, "repository").ok()));
    }

    /// Adds to the last resource that the servers may read their models before it, if those are in a bucket: they are read at the start.
    pub(super) fn after_reader(&mut self, endpoint: &InferenceEndpoint) {
        let reads = endpoint.models.iter().any(|model| model.source.starts_with("gs:"));
        self.after(self.part_of(MODELS, "reader").filter(|_| reads));
    }

    pub(super) fn cloud_run(&mut self, endpoint: &InferenceEndpoint) {
        let Some((image, variables)) = self.container(&HOST, endpoint) else { return };
        let (cpu, memory) = self.instance(endpoint);
        let own = self.servers(&NEEDED);
        let caller = self.account("caller", names::caller(self.site), "callers");
        let (Some(own), Some(caller)) = (own, caller) else { return };
        let (key, access) = self.data_key("agent:run");
        let timeout = seconds(endpoint);
        let max = endpoint.autoscaling.as_ref().map_or(endpoint.replicas, |autoscaling| autoscaling.max);
        let service = json!({
            "name": names::service(self.site),
            "template": {
                "image": image,
                "variables": variables,
                "account": output(&own, "email"),
                "cpu": cpu.to_string(),
                "memory": format!("{memory}Mi"),
                "gpu": endpoint.gpu.map(|_| GPU),
                "min": endpoint.replicas,
                "max": max,
                "concurrency": CONCURRENCY,
                "timeout_seconds": timeout,
                "key": key,
            },
            "traffic": [{ "type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 100 }],
            // IAM decides who may call it.
            "ingress": "INGRESS_TRAFFIC_ALL",
            "serving": true,
        });
        let service = self.part("service", SERVICE, self.of_region(service));
        self.after(access);
        self.after_push(endpoint);
        if let Some(service) = service {
            self.after_reader(endpoint);
            let member = output(&caller, "member");
            let invoker = json!({ "target": output(&service, "id"), "role": INVOKER, "member": member });
            self.part("invoker", "gcp.run-binding", invoker);
        }
    }

    /// The CPUs of an instance, and its memory in MiB.
    fn instance(&mut self, endpoint: &InferenceEndpoint) -> (u32, u64) {
        let millicores = endpoint.resources.cpu.map_or(CPU * 1000, |cpu| cpu.0);
        let memory = endpoint.resources.memory.map_or(MEMORY_MIB, |memory| memory.0.div_ceil(MIB));
        let size = SIZES.iter().find(|(cpus, ..)| cpus * 1000 == millicores);
        match size {
            None => {
                let known: Vec<String> = SIZES.iter().map(|(cpus, ..)| cpus.to_string()).collect();
                let cause = format!("Cloud Run has no instances with {} CPUs", f64::from(millicores) / 1000.0);
                self.problem("resources.cpu", cause, format!("write one of {}", known.join(", ")));
            }
            Some((cpus, least, most)) if !(*least..=*most).contains(&memory) => {
                let cause = format!("{memory} MiB: an instance with {cpus} CPUs has {least} to {most} MiB of memory");
                self.problem("resources.memory", cause, "write another amount, or other CPUs");
            }
            Some(_) => {}
        }
        if endpoint.gpu.is_some() {
            let (least_cpu, least_memory) = LEAST_WITH_GPU;
            if millicores < least_cpu * 1000 || memory < least_memory {
                let cause = format!("an instance with a GPU has {least_cpu} CPUs and {least_memory} MiB or more");
                self.problem("resources", cause, "raise `sites[].cluster.resources.limits`, or remove it");
            }
            if !GPU_REGIONS.contains(&self.site.region.as_str()) {
                let cause = format!("Cloud Run has no GPUs in {}", self.site.region);
                self.problem("gpu", cause, format!("choose one of {}, or remove `gpu`", GPU_REGIONS.join(", ")));
            }
        }
        (millicores / 1000, memory)
    }
}

/// The longest request.
pub(super) fn seconds(endpoint: &InferenceEndpoint) -> u64 {
    endpoint.config["textnlp"]["api"]["timeout"].as_u64().unwrap_or(SECONDS).clamp(1, MOST_SECONDS)
}

#[cfg(test)]
pub(super) mod tests {
    use textnlp_provider::Site;
    use textnlp_provider::cluster::ResourceAmounts;
    use textnlp_provider::component::{ComponentSpec, Model, ModelStore, ServiceLimits};
    use textnlp_provider::settings::{GpuSize, Runtime};
    use textnlp_provider::units::{Bytes, Cores};

    use super::super::lower;
    use super::super::tests::{component, site};
    use super::*;

    pub(crate) fn endpoint() -> InferenceEndpoint {
        let tiny = Model { digest: Some("sha256:1".to_owned()), ..Model::of("tiny", "bundled") };
        InferenceEndpoint {
            replicas: 1,
            autoscaling: None,
            gpu: None,
            resources: ResourceAmounts::default(),
            instance_type: None,
            image: Some("europe-west1-docker.pkg.dev/my-project/textnlp/server:1@sha256:2".to_owned()),
            registry: Some("registry".parse().unwrap()),
            image_in: Some("registry".parse().unwrap()),
            config: json!({ "textnlp": { "api": { "timeout": 7200 }, "models": { "serve": [{ "name": "tiny" }] } } }),
            models: vec![tiny],
            max_cache_bytes: 1,
            permission_boundary: None,
            limits: ServiceLimits::default(),
            shift: None,
            monitoring: None,
        }
    }

    fn of(protect_data: bool) -> Site {
        Site { runtime: Runtime::CloudRun, ..site(protect_data) }
    }

    #[test]
    fn a_service_runs_the_image_as_its_own_account_and_one_account_may_call_it() {
        let all = lower(&component("server", ComponentSpec::InferenceEndpoint(endpoint())), &of(true)).unwrap();
        let parts: Vec<&str> = all.iter().filter_map(|one| one.id.as_str().strip_prefix("main/server/")).collect();
        assert_eq!(parts, ["services", "account", "caller", "key-access", "service", "invoker"]);
        let service = all.iter().find(|one| one.kind.as_str() == SERVICE).unwrap();
        let template = &service.spec.as_value()["template"];
        assert_eq!(template["image"], "europe-west1-docker.pkg.dev/my-project/textnlp/server@sha256:2");
        assert_eq!((&template["timeout_seconds"], &template["gpu"]), (&json!(3600), &Value::Null));
        assert!(template["variables"]["TEXTNLP_CLOUD_RUN_SERVER_0"].as_str().unwrap().contains("/tmp/textnlp"));
        for need in ["services", "account", "key-access"].map(|part| format!("main/server/{part}")) {
            assert!(service.needs.iter().any(|one| one.on.as_str() == need), "{need}: {:?}", service.needs);
        }
        assert!(service.needs.iter().any(|one| one.on.as_str() == "main/registry/repository"));
        let invoker = all.last().unwrap().spec.as_value();
        assert_eq!(invoker["member"], json!({ "$output": "main/server/caller#member" }));
    }

    #[test]
    fn a_service_reads_models_of_the_bucket_of_its_site() {
        let source = "gs://textnlp-my-project-staging-main-models/team/";
        let store = ModelStore::of(vec![Model::of("mine", source)]);
        let all = lower(&component("models", ComponentSpec::ModelStore(store)), &of(false)).unwrap();
        let reader = all.iter().find(|one| one.id.as_str() == "main/models/reader").unwrap();
        assert_eq!(reader.spec.get("member"), Some(&json!({ "$output": "main/server/account#member" })));
        assert!(!reader.needs.iter().any(|need| need.on.as_str() == "main/cluster"), "{:?}", reader.needs);
    }

    #[test]
    fn what_cloud_run_cannot_run_is_refused_with_the_reason() {
        let check = |endpoint: InferenceEndpoint, region: &str, expected: &str| {
            let site = Site { region: region.to_owned(), ..of(false) };
            let problems = lower(&component("server", ComponentSpec::InferenceEndpoint(endpoint)), &site);
            let problems = problems.unwrap_err().to_string();
            assert!(problems.contains(expected), "{expected}: {problems}");
        };
        let here = "europe-west1";
        check(InferenceEndpoint { image: None, ..endpoint() }, here, "there is no image");
        let local = Model { digest: Some("sha256:1".to_owned()), ..Model::of("tiny", "file:/m") };
        check(InferenceEndpoint { models: vec![local], ..endpoint() }, here, "Cloud Run does not reach");
        check(InferenceEndpoint { models: vec![Model::of("tiny", "hf:a/b")], ..endpoint() }, here, "has no digest");
        let sized = |cpu: u32, gib: u64| InferenceEndpoint {
            resources: ResourceAmounts { cpu: Some(Cores(cpu)), memory: Some(Bytes(gib << 30)) },
            ..endpoint()
        };
        check(sized(3000, 8), here, "write one of 1, 2, 4, 6, 8");
        check(sized(2000, 16), here, "an instance with 2 CPUs has 512 to 8192 MiB");
        check(sized(4000, 1), here, "an instance with 4 CPUs has 2048 to 16384 MiB");
        let with_gpu = |endpoint: InferenceEndpoint| InferenceEndpoint { gpu: Some(GpuSize::Large), ..endpoint };
        check(with_gpu(sized(2000, 8)), here, "an instance with a GPU has 4 CPUs");
        check(with_gpu(endpoint()), "europe-west3", "Cloud Run has no GPUs in europe-west3");
    }
}
