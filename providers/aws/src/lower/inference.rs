//! The servers as an endpoint of SageMaker: its image, its role, how it changes, and its alarm.

use serde_json::{Value, json};
use textnlp_cloud::{ContainerHost, by_digest, is_fetched};
use textnlp_provider::ResourceId;
use textnlp_provider::component::InferenceEndpoint;
use textnlp_token::partition;

use super::{Lowering, models_bucket, output};
use crate::kinds::iam::PATH;
use crate::names;
use crate::tables::machines;

/// The name of the only variant.
const VARIANT: &str = "main";
/// Four vCPUs and 16 GiB.
const INSTANCE_TYPE: &str = "ml.m5.xlarge";
/// The AMI of instances with GPUs. It has driver 580, which CUDA 13 needs; no other one and no default has it
/// (<https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ProductionVariant.html>).
const GPU_AMI: &str = "al2023-ami-sagemaker-inference-gpu-4-1";
/// The variable by which a container sees GPUs, and its value for all of them
/// (<https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html>). The image has `void`, for
/// pods that are given none.
const VISIBLE_GPUS: (&str, &str) = ("NVIDIA_VISIBLE_DEVICES", "all");
/// The families of instances without GPUs that the servers run on: x86-64, whose volumes are encrypted with the site's key. Those
/// with disks of their own take no key
/// (<https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateEndpointConfig.html>).
const FAMILIES: &[&str] = &["c5", "c6i", "c7i", "m5", "m6i", "m7i", "r5", "r6i", "r7i"];
/// The port of SageMaker's containers, the folder of an instance that they may write, and the end of a container 30 seconds
/// after SIGTERM (<https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html>); the most bytes of
/// variables (<https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ContainerDefinition.html>).
const HOST: ContainerHost = ContainerHost {
    name: "SageMaker",
    server: "TEXTNLP_SAGEMAKER_SERVER",
    models: "TEXTNLP_SAGEMAKER_MODELS",
    most: 32 * 1024,
    listen: "0.0.0.0:8080",
    folder: "/tmp/textnlp",
    drain_seconds: 25,
    bucket: "s3",
};
/// The bounds of a volume in GB, and what it has besides the models.
const VOLUME_GB: std::ops::RangeInclusive<u64> = 10..=512;
const BESIDES_GB: u64 = 5;
/// How long a container may take until it answers health checks, and how long with models to fetch or with a GPU, whose driver
/// compiles the kernels at the first start: an hour is the most.
const STARTUP_SECONDS: u32 = 600;
const LONG_STARTUP_SECONDS: u32 = 3600;
/// How long the logs of the containers are kept, in days.
const LOG_DAYS: u32 = 90;
/// How long the old instances of a deployment stay after it.
const KEEP_SECONDS: u32 = 120;
/// The largest canary (<https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-blue-green-canary.html>).
const MOST_CANARY_PERCENT: u32 = 50;
/// The longest wait of a deployment, and what its alarm takes besides its periods.
const MOST_WAIT_SECONDS: u64 = 3600;
const ALARM_DELAY_SECONDS: u64 = 120;
/// The seconds of a value of the alarm.
const PERIOD_SECONDS: u64 = 60;
/// Cooldowns of the autoscaling. An instance takes minutes to start.
const SCALE_OUT_SECONDS: u32 = 300;
const SCALE_IN_SECONDS: u32 = 600;

impl Lowering<'_> {
    pub(super) fn inference(&mut self, endpoint: &InferenceEndpoint) {
        let name = names::endpoint(self.site);
        let has_gpus = endpoint.gpu.is_some();
        let instance_type = self.instance_type(endpoint);
        if has_gpus && (endpoint.image.is_none() || endpoint.registry.is_some()) {
            let cause = "the instances have GPUs, and images that `up` pushes compute on the CPU";
            let fix = "build one by `server/cuda/Dockerfile`, push it, and write `sites[].cluster.image: REPOSITORY@sha256:…`";
            return self.problem("image", cause, fix);
        }
        let Some(image) = &endpoint.image else {
            let cause = "there is no image: `registry.url` is not set, or none can be made of this program";
            let (account, region) = (&self.site.account, &self.site.region);
            let suffix = partition(region).dns_suffix;
            let fix = format!("write `registry: {{ url: {account}.dkr.ecr.{region}.{suffix}/textnlp }}`");
            return self.problem("image", cause, fix);
        };
        let reads_bucket = endpoint.models.iter().any(|model| model.source.starts_with("s3:"));
        let region = reads_bucket.then(|| ("AWS_REGION".to_owned(), self.site.region.clone()));
        let gpus = has_gpus.then(|| (VISIBLE_GPUS.0.to_owned(), VISIBLE_GPUS.1.to_owned()));
        let environment = match HOST.variables(endpoint, region.into_iter().chain(gpus).collect()) {
            Ok(environment) => environment,
            Err(problems) => {
                return problems.into_iter().for_each(|(cause, fix)| self.problem("models", cause, fix));
            }
        };
        let fetches = endpoint.models.iter().any(is_fetched);
        let registry = endpoint
            .registry
            .as_ref()
            .and_then(|registry| ResourceId::part(&self.site.name, registry, "repository").ok());
        let repository = match &registry {
            Some(registry) => Some(output(registry, "arn")),
            None => self.repository_of(image),
        };
        let (Some(repository), Some(instance_type)) = (repository, instance_type) else { return };
        let logs = self.part(
            "logs",
            "aws.log-group",
            &json!({ "name": format!("/aws/sagemaker/Endpoints/{name}"), "retention_days": LOG_DAYS, "key": null }),
        );
        let role = self.execution_role(endpoint, &name, &repository);
        let Some(role) = role else { return };
        let model = self.part(
            "model",
            "aws.sagemaker-model",
            &json!({
                "name": name,
                "image": by_digest(image),
                "data": null,
                "environment": environment,
                "role": output(&role, "arn"),
                "subnets": [],
                "security_groups": [],
                // Without models to fetch it needs no network.
                "isolated": !fetches,
            }),
        );
        self.after(registry);
        let Some(model) = model else { return };
        let volume_gb = endpoint.max_cache_bytes.div_ceil(1_000_000_000).saturating_add(BESIDES_GB);
        let mut variant = json!({
            "name": VARIANT,
            "model": output(&model, "name"),
            "instance_type": instance_type,
            "count": endpoint.replicas,
            "weight": 1,
            "volume_gb": volume_gb.clamp(*VOLUME_GB.start(), *VOLUME_GB.end()),
            "download_seconds": STARTUP_SECONDS,
            "startup_seconds": if fetches || has_gpus { LONG_STARTUP_SECONDS } else { STARTUP_SECONDS },
        });
        let mut key = self.data_key();
        if has_gpus {
            // They have disks of their own, which the instances encrypt: SageMaker takes neither a key nor a size.
            (key, variant["volume_gb"]) = (Value::Null, Value::Null);
            variant["ami"] = json!(GPU_AMI);
        }
        let config =
            self.part("config", "aws.endpoint-config", &json!({ "name": name, "key": key, "variants": [variant] }));
        let (alarm, wait_seconds) = self.errors_alarm(endpoint, &name);
        let (Some(config), Some(alarm)) = (config, alarm) else { return };
        let alarm = output(&alarm, "name");
        let Some(deployment) = self.deployment(endpoint, wait_seconds, &alarm) else { return };
        let made = self.part(
            "endpoint",
            "aws.endpoint",
            &json!({
                "name": name,
                "config": output(&config, "name"),
                "deployment": deployment,
                "variants": {
                    VARIANT: { "weight": 1, "count": endpoint.autoscaling.is_none().then_some(endpoint.replicas) },
                },
            }),
        );
        // SageMaker would create the group itself, and keep its logs for ever.
        self.after(logs);
        if let Some(made) = made {
            self.autoscaling(endpoint, &made);
        }
    }

    /// How the endpoint moves to a new release: new instances beside the old ones, observed for `wait_seconds` at least after
    /// each step.
    fn deployment(&mut self, endpoint: &InferenceEndpoint, wait_seconds: u64, alarm: &Value) -> Option<Value> {
        let shift = endpoint.shift.as_ref();
        let share = shift.and_then(|shift| shift.share);
        let wait_seconds = wait_seconds.max(shift.map_or(0, |shift| shift.bake_seconds));
        // A canary is observed before all get requests, and afterwards.
        let steps = if share.is_some() { 2 } else { 1 };
        let waits = wait_seconds.saturating_mul(steps).saturating_add(u64::from(KEEP_SECONDS));
        let before = self.problems.len();
        if share.is_some_and(|share| share > MOST_CANARY_PERCENT) {
            let cause = format!("the canary of an endpoint is at most {MOST_CANARY_PERCENT} % of its instances");
            self.problem("rollout", cause, format!("write `rollout.first_share: {MOST_CANARY_PERCENT}` or less"));
        }
        if share.is_some() && endpoint.replicas < 2 {
            let cause = "a canary needs two instances";
            self.problem("rollout", cause, "write `scaling.min: 2` or more, or `rollout.strategy: blue-green`");
        }
        if wait_seconds > MOST_WAIT_SECONDS {
            let cause = "SageMaker observes a new release for an hour at most";
            self.problem("rollout", cause, "write `rollout.bake: 1h` or less");
        } else if shift.is_some_and(|shift| shift.deadline_seconds < waits.saturating_add(u64::from(STARTUP_SECONDS))) {
            let (waits, start) = (waits.div_ceil(60), STARTUP_SECONDS / 60);
            let cause =
                format!("a release is observed for {waits} minutes after its instances took up to {start} to start");
            let fix =
                "write a longer `rollout.deadline`, or a shorter `rollout.bake` and `monitoring.alerts.error_rate_for`";
            self.problem("rollout", cause, fix);
        }
        if self.problems.len() > before {
            return None;
        }
        let mut deployment = json!({
            "routing": if share.is_some() { "CANARY" } else { "ALL_AT_ONCE" },
            "step_percent": share,
            "wait_seconds": wait_seconds,
            "keep_seconds": KEEP_SECONDS,
            "alarms": [alarm],
        });
        if let Some(shift) = shift {
            deployment["timeout_seconds"] = json!(shift.deadline_seconds);
        }
        Some(deployment)
    }

    /// The type of the instances. There is no image for arm64, and CUDA 13 has no code for GPUs before Turing.
    fn instance_type(&mut self, endpoint: &InferenceEndpoint) -> Option<String> {
        let named = endpoint.instance_type.as_deref();
        let types = |families: &[&str]| -> String {
            let types: Vec<String> = families.iter().map(|family| format!("ml.{family}")).collect();
            types.join(", ")
        };
        let Some(size) = endpoint.gpu else {
            let name = named.unwrap_or(INSTANCE_TYPE);
            let family = name.strip_prefix("ml.").and_then(|rest| rest.split_once('.')).map(|(family, _)| family);
            if family.is_some_and(|family| FAMILIES.contains(&family)) {
                return Some(name.to_owned());
            }
            let cause = format!("endpoints without `gpu` do not run on `{name}`: they use CPUs of x86-64 only");
            let known = types(FAMILIES);
            let fix = format!("choose one of {known}, such as {INSTANCE_TYPE}; or write `gpu: {{ size: small }}`");
            self.problem("instance_type", cause, fix);
            return None;
        };
        let is_known = |name: &String| machines::of_endpoint(name).is_some();
        let found = match named {
            Some(name) => Some(name.to_owned()).filter(is_known),
            None => machines::candidates(size).iter().map(|name| format!("ml.{name}")).find(is_known),
        };
        if found.is_none() {
            let mut families: Vec<&str> = machines::gpus().map(|machine| machine.family.name).collect();
            families.dedup();
            let cause = format!("`{}` is no type with GPUs that the servers run on", named.unwrap_or_default());
            let fix = format!("choose one of {}, or remove it: `gpu.size` chooses one", types(&families));
            self.problem("instance_type", cause, fix);
        }
        found
    }

    /// The ARN of the repository of an image that was pushed before. It must be in ECR of the endpoint's region
    /// (<https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ContainerDefinition.html>).
    fn repository_of(&mut self, image: &str) -> Option<Value> {
        let (partition, region) = (partition(&self.site.region), &self.site.region);
        let host = format!(".dkr.ecr.{region}.{}", partition.dns_suffix);
        let (tagged, digest) = image.split_once('@').unwrap_or((image, ""));
        let found = tagged.split_once('/').and_then(|(registry, path)| Some((registry.strip_suffix(&host)?, path)));
        let Some((account, path)) = found else {
            let cause = format!("SageMaker pulls images of ECR in {region} only, and `{image}` is not there");
            let fix =
                format!("push it there, and write `sites[].cluster.image: {}{host}/NAME@sha256:…`", self.site.account);
            self.problem("image", cause, fix);
            return None;
        };
        if !digest.starts_with("sha256:") {
            let cause = format!("`{image}` has no digest: a tag can become another image");
            self.problem("image", cause, "add `@sha256:…` to `sites[].cluster.image`");
            return None;
        }
        let name = path.split_once(':').map_or(path, |(name, _)| name);
        Some(json!(format!("arn:{}:ecr:{region}:{account}:repository/{name}", partition.name)))
    }

    /// The role of the containers: what SageMaker does with it, and nothing for the servers themselves.
    fn execution_role(&mut self, endpoint: &InferenceEndpoint, name: &str, repository: &Value) -> Option<ResourceId> {
        let (partition, region, account) = (partition(&self.site.region).name, &self.site.region, &self.site.account);
        let group = format!("arn:{partition}:logs:{region}:{account}:log-group:/aws/sagemaker/Endpoints/{name}");
        let may = |sid: &str, actions: &[&str], resource: Value| json!({ "Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource });
        let mut metrics = may("Metrics", &["cloudwatch:PutMetricData"], json!("*"));
        metrics["Condition"] = json!({ "StringEquals": { "cloudwatch:namespace": "/aws/sagemaker/Endpoints" } });
        let mut statements = vec![
            may("SignIn", &["ecr:GetAuthorizationToken"], json!("*")),
            may(
                "Logs",
                &["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
                json!([group.clone(), format!("{group}:*")]),
            ),
            metrics,
            // The rollback of a deployment reads its alarms as this role.
            may("Alarms", &["cloudwatch:DescribeAlarms"], json!("*")),
            may(
                "Image",
                &["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                repository.clone(),
            ),
        ];
        statements.extend(self.may_read(&endpoint.models, &models_bucket(self.site)));
        let trust = json!({
            "Effect": "Allow",
            "Principal": { "Service": ["sagemaker.amazonaws.com"] },
            "Action": ["sts:AssumeRole"],
            "Condition": { "StringEquals": { "aws:SourceAccount": [account] } },
        });
        let spec = json!({
            "name": names::of(self.site, "endpoint", names::MOST_OF_ROLE),
            "path": PATH,
            "trust": { "Version": "2012-10-17", "Statement": [trust] },
            "boundary": endpoint.permission_boundary,
            "managed": [],
            "inline": { "endpoint": { "Version": "2012-10-17", "Statement": statements } },
        });
        self.part("role", "aws.role", &spec)
    }

    /// The alarm about the share of requests that the containers answer with 5xx, and how long a deployment waits for it. It
    /// goes to the receivers too.
    fn errors_alarm(&mut self, endpoint: &InferenceEndpoint, name: &str) -> (Option<ResourceId>, u64) {
        let limits = &endpoint.limits;
        let longest = MOST_WAIT_SECONDS - ALARM_DELAY_SECONDS;
        let seconds = limits.error_rate_for_seconds.clamp(PERIOD_SECONDS, longest);
        let periods = seconds / PERIOD_SECONDS;
        let metric = |metric: &str| {
            json!({
                "namespace": "AWS/SageMaker",
                "name": metric,
                "statistic": "Sum",
                "dimensions": { "EndpointName": name, "VariantName": VARIANT },
            })
        };
        let topic = endpoint
            .monitoring
            .as_ref()
            .and_then(|monitoring| ResourceId::part(&self.site.name, monitoring, "topic").ok());
        let actions: Vec<Value> = topic.iter().map(|topic| output(topic, "arn")).collect();
        let place = format!("{} at {}", self.site.environment, self.site.name);
        let alarm = self.part(
            "alarm-errors",
            "aws.alarm",
            &json!({
                "name": names::of(self.site, "endpoint-errors", 100),
                "description": format!("The servers of the endpoint answer with errors: {place}"),
                "enabled": true,
                // <https://docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html>
                "metrics": { "errors": metric("Invocation5XXErrors"), "total": metric("Invocations") },
                "expression": "IF(total > 0, 100 * errors / total, 0)",
                "period_seconds": PERIOD_SECONDS,
                "periods": periods,
                "datapoints": periods,
                "comparison": "GreaterThanThreshold",
                "threshold": (limits.error_rate * 10_000.0).round() / 100.0,
                "missing": "notBreaching",
                "alarm_actions": actions,
                "ok_actions": actions,
            }),
        );
        (alarm, (seconds + ALARM_DELAY_SECONDS).min(MOST_WAIT_SECONDS))
    }

    /// Autoscaling by the requests of an instance.
    fn autoscaling(&mut self, endpoint: &InferenceEndpoint, made: &ResourceId) {
        let Some(autoscaling) = &endpoint.autoscaling else { return };
        let Some(rate) =
            autoscaling.requests_per_second.filter(|_| autoscaling.cpu.is_none() && autoscaling.memory.is_none())
        else {
            let cause = "SageMaker counts the requests of an endpoint, and not the use of its processors and memory";
            return self.problem("scaling", cause, "write `scaling.requests_per_second`, without `cpu` and `memory`");
        };
        self.part(
            "scaling",
            "aws.scaling-target",
            &json!({
                "endpoint": output(made, "name"),
                "variant": VARIANT,
                "min": endpoint.replicas,
                "max": autoscaling.max,
                "policies": {
                    "requests": {
                        "invocations": rate.saturating_mul(60),
                        "scale_out_seconds": SCALE_OUT_SECONDS,
                        "scale_in_seconds": SCALE_IN_SECONDS,
                    },
                },
            }),
        );
    }
}
