//! The servers as an endpoint of Vertex AI: their image as a model, the account that they run as, and the model at the endpoint.

use serde_json::{Value, json};
use textnlp_cloud::{ContainerHost, is_fetched};
use textnlp_provider::component::InferenceEndpoint;

use super::run::seconds;
use super::{Lowering, output};
use crate::kinds::vertex::{DEPLOYMENT, ENDPOINT, MODEL};
use crate::names;
use crate::service::Service;
use crate::tables::machines::{self, MACHINES};

/// The port of containers (<https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements>), and a folder in their
/// disk. No document says how long a container has after SIGTERM, nor how long all its variables may be: as many bytes as for Cloud Run.
const HOST: ContainerHost = ContainerHost {
    name: "Vertex AI",
    server: "TEXTNLP_VERTEX_SERVER",
    models: "TEXTNLP_VERTEX_MODELS",
    most: 64 * 1024,
    listen: "0.0.0.0:8080",
    folder: "/tmp/textnlp",
    drain_seconds: 8,
    bucket: "gs",
};
/// The services that such a site needs.
const NEEDED: [Service; 7] = [
    Service::AiPlatform,
    Service::ArtifactRegistry,
    Service::CloudBilling,
    Service::CloudKms,
    Service::Iam,
    Service::ResourceManager,
    Service::Storage,
];
/// The machine of a deployed model where the environment states none: 4 vCPUs and 16 GiB.
const MACHINE: &str = "e2-standard-4";
/// The families of machines without GPUs that the servers run on: x86-64
/// (<https://cloud.google.com/vertex-ai/docs/predictions/configure-compute#machine-types>).
const FAMILIES: [&str; 7] = ["c2", "c2d", "c3", "e2", "n1", "n2", "n2d"];
/// The shapes of those machines.
const SHAPES: [&str; 3] = ["standard", "highmem", "highcpu"];
/// How long a container may take until it answers health checks, with models in the image and with models to fetch. Two hours is the
/// most (<https://cloud.google.com/vertex-ai/docs/reference/rest/v1/ModelContainerSpec>).
const STARTUP_SECONDS: u32 = 1800;
const FETCH_SECONDS: u32 = 5400;

impl Lowering<'_> {
    pub(super) fn vertex(&mut self, endpoint: &InferenceEndpoint) {
        let container = self.container(&HOST, endpoint);
        let machine = self.serving_machine(endpoint);
        if endpoint.replicas == 0 {
            self.problem("replicas", "a model at an endpoint has one replica at least", "write `scaling.min: 1`");
        }
        let (Some((image, variables)), Some((machine, accelerator))) = (container, machine) else { return };
        let Some(account) = self.servers(&NEEDED) else { return };
        let (key, access) = self.data_key("agent:aiplatform");
        let fetches = endpoint.models.iter().any(is_fetched);
        let model = self.of_region(json!({
            "name": names::model(self.site),
            "image": image,
            "variables": variables,
            "start_seconds": if fetches { FETCH_SECONDS } else { STARTUP_SECONDS },
            "key": key,
        }));
        let model = self.part("model", MODEL, model);
        self.after(access.clone());
        self.after_push(endpoint);
        let made = self.of_region(json!({
            "name": names::endpoint(self.site),
            "timeout_seconds": seconds(endpoint),
            "key": key,
        }));
        let made = self.part("endpoint", ENDPOINT, made);
        self.after(access);
        let (Some(model), Some(made)) = (model, made) else { return };
        let autoscaling = endpoint.autoscaling.as_ref();
        let per_minute = autoscaling.and_then(|autoscaling| Some(u64::from(autoscaling.requests_per_second?) * 60));
        let deployment = json!({
            "endpoint": output(&made, "id"),
            "model": output(&model, "id"),
            "account": output(&account, "email"),
            "machine": machine,
            "accelerator": accelerator,
            "scaling": {
                "min": endpoint.replicas,
                "max": autoscaling.map_or(endpoint.replicas, |autoscaling| autoscaling.max),
                "requests_per_minute": per_minute,
            },
            "traffic": 100,
        });
        self.part("deployment", DEPLOYMENT, deployment);
        self.after_reader(endpoint);
    }

    /// The machine of a replica, and its GPUs.
    fn serving_machine(&mut self, endpoint: &InferenceEndpoint) -> Option<(String, Value)> {
        let named = endpoint.instance_type.as_deref();
        let found = match (endpoint.gpu, named) {
            (None, name) => {
                let name = name.unwrap_or(MACHINE);
                if !is_served(name) {
                    let cause = format!("the servers do not run on `{name}` without a GPU");
                    let fix = format!(
                        "choose a machine of {}, with {}, such as {MACHINE}; or write `gpu: {{ size: large }}`",
                        FAMILIES.join(", "),
                        SHAPES.join(", ")
                    );
                    self.problem("instance_type", cause, fix);
                    return None;
                }
                return Some((name.to_owned(), Value::Null));
            }
            (Some(size), None) => machines::of_size(size),
            (Some(_), Some(name)) => MACHINES.iter().find(|one| one.name == name && one.gpu.is_some()),
        };
        let with_gpu = found.and_then(|machine| Some((machine, machine.gpu?)));
        let Some((machine, (gpu, count))) = with_gpu else {
            let known: Vec<&str> = MACHINES.iter().filter(|one| one.gpu.is_some()).map(|one| one.name).collect();
            let cause = format!("`{}` is no machine with GPUs that is known", named.unwrap_or_default());
            let fix = format!("choose one of {}, or remove it: `gpu.size` chooses one", known.join(", "));
            self.problem("instance_type", cause, fix);
            return None;
        };
        Some((machine.name.to_owned(), json!({ "type": gpu.vertex_name(), "count": count })))
    }
}

/// Whether a machine without GPUs is a `FAMILY-SHAPE-VCPUS` that servers run on.
fn is_served(name: &str) -> bool {
    let parts: Vec<&str> = name.split('-').collect();
    let [family, shape, vcpus] = parts[..] else { return false };
    FAMILIES.contains(&family) && SHAPES.contains(&shape) && vcpus.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use textnlp_provider::Site;
    use textnlp_provider::component::{Autoscaling, ComponentSpec, Model};
    use textnlp_provider::settings::{GpuSize, Runtime};

    use super::super::lower;
    use super::super::run::tests::endpoint;
    use super::super::tests::{component, site};
    use super::*;

    fn of(protect_data: bool) -> Site {
        Site { runtime: Runtime::Vertex, ..site(protect_data) }
    }

    #[test]
    fn an_endpoint_has_the_model_of_the_image_and_a_deployment_of_it() {
        let autoscaling = Autoscaling { max: 4, cpu: None, memory: None, requests_per_second: Some(5) };
        let wanted = InferenceEndpoint { autoscaling: Some(autoscaling), gpu: Some(GpuSize::Large), ..endpoint() };
        let all = lower(&component("server", ComponentSpec::InferenceEndpoint(wanted)), &of(true)).unwrap();
        let parts: Vec<&str> = all.iter().filter_map(|one| one.id.as_str().strip_prefix("main/server/")).collect();
        assert_eq!(parts, ["services", "account", "key-access", "model", "endpoint", "deployment"]);
        let part = |name: &str| all.iter().find(|one| one.id.as_str() == format!("main/server/{name}")).unwrap();
        let model = part("model").spec.as_value();
        assert_eq!(model["image"], "europe-west1-docker.pkg.dev/my-project/textnlp/server@sha256:2");
        assert!(model["variables"]["TEXTNLP_VERTEX_SERVER_0"].as_str().unwrap().contains("/tmp/textnlp"));
        assert_eq!((&model["start_seconds"], &model["tags"]), (&json!(1800), &json!({ "team": "text" })));
        for need in ["main/server/services", "main/server/key-access", "main/registry/repository"] {
            assert!(part("model").needs.iter().any(|one| one.on.as_str() == need), "{need}: {:?}", part("model").needs);
        }
        assert_eq!(part("endpoint").spec.as_value()["timeout_seconds"], 3600);
        let deployment = part("deployment").spec.as_value();
        assert_eq!(deployment["model"], json!({ "$output": "main/server/model#id" }));
        assert_eq!(deployment["account"], json!({ "$output": "main/server/account#email" }));
        assert_eq!(deployment["accelerator"], json!({ "type": "NVIDIA_L4", "count": 1 }));
        assert_eq!(deployment["scaling"], json!({ "min": 1, "max": 4, "requests_per_minute": 300 }));
    }

    #[test]
    fn machines_have_the_gpus_that_vertex_ai_names() {
        let machine = |gpu: Option<GpuSize>, name: Option<&str>| {
            let wanted = InferenceEndpoint { gpu, instance_type: name.map(str::to_owned), ..endpoint() };
            let all = lower(&component("server", ComponentSpec::InferenceEndpoint(wanted)), &of(false));
            let all = all.map_err(|problems| problems.to_string())?;
            let spec = all.last().unwrap().spec.as_value().clone();
            Ok::<_, String>((spec["machine"].clone(), spec["accelerator"]["type"].clone()))
        };
        for (gpu, name, expected) in [
            (None, None, ("e2-standard-4", None)),
            (None, Some("c2-standard-16"), ("c2-standard-16", None)),
            (Some(GpuSize::Small), None, ("n1-standard-4", Some("NVIDIA_TESLA_T4"))),
            (Some(GpuSize::Xlarge), None, ("a2-highgpu-8g", Some("NVIDIA_TESLA_A100"))),
            (Some(GpuSize::Xlarge), Some("a2-ultragpu-1g"), ("a2-ultragpu-1g", Some("NVIDIA_A100_80GB"))),
            (Some(GpuSize::Xlarge), Some("a3-highgpu-8g"), ("a3-highgpu-8g", Some("NVIDIA_H100_80GB"))),
        ] {
            assert_eq!(machine(gpu, name), Ok((json!(expected.0), json!(expected.1))), "{gpu:?} {name:?}");
        }
        for (gpu, name, says) in [
            (None, "g2-standard-8", "write `gpu: { size: large }`"),
            (None, "t2a-standard-4", "do not run on `t2a-standard-4`"),
            (None, "e2-micro", "do not run on `e2-micro`"),
            (None, "n1-megamem-96", "do not run on `n1-megamem-96`"),
            (None, "c3-standard-4-lssd", "do not run on `c3-standard-4-lssd`"),
            (Some(GpuSize::Large), "e2-standard-4", "`e2-standard-4` is no machine with GPUs"),
        ] {
            let refused = machine(gpu, Some(name)).unwrap_err();
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn what_vertex_ai_cannot_run_is_refused_with_the_reason() {
        let local = Model { digest: Some("sha256:1".to_owned()), ..Model::of("tiny", "file:/m") };
        for (wanted, says) in [
            (InferenceEndpoint { image: None, ..endpoint() }, "there is no image"),
            (InferenceEndpoint { models: vec![local], ..endpoint() }, "Vertex AI does not reach"),
            (InferenceEndpoint { replicas: 0, ..endpoint() }, "write `scaling.min: 1`"),
        ] {
            let problems = lower(&component("server", ComponentSpec::InferenceEndpoint(wanted)), &of(false));
            let problems = problems.unwrap_err().to_string();
            assert!(problems.contains(says), "{says}: {problems}");
        }
    }
}
