//! The servers as an endpoint of SageMaker: its image, its role, how it changes, and its alarm.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::component::{InferenceEndpoint, Model};
use textnlp_provider::{ResourceId, Spec};
use textnlp_token::partition;

use super::{Lowering, models_bucket, output};
use crate::kinds::iam::PATH;
use crate::names;

/// The name of the only variant.
const VARIANT: &str = "main";
/// Four vCPUs and 16 GiB.
const INSTANCE_TYPE: &str = "ml.m5.xlarge";
/// The families of instances that the servers run on: x86-64, whose volumes are encrypted with the site's key. Those with
/// disks of their own take no key
/// (<https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateEndpointConfig.html>).
const FAMILIES: &[&str] = &["c5", "c6i", "c7i", "m5", "m6i", "m7i", "r5", "r6i", "r7i"];
/// The port of SageMaker's containers, and the folder of an instance that they may write
/// (<https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html>).
const LISTEN: &str = "0.0.0.0:8080";
const FOLDER: &str = "/tmp/textnlp";
/// SageMaker kills a container 30 seconds after SIGTERM.
const MOST_DRAIN_SECONDS: u64 = 25;
/// The variables that the server reads its configuration and the list of its models from, each in numbered pieces.
const SERVER: &str = "TEXTNLP_SAGEMAKER_SERVER";
const MODELS: &str = "TEXTNLP_SAGEMAKER_MODELS";
/// The most bytes of one variable, and of all with their names
/// (<https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ContainerDefinition.html>).
const MOST_OF_VALUE: usize = 1024;
const MOST_OF_ALL: usize = 32 * 1024;
/// The bounds of a volume in GB, and what it has besides the models.
const VOLUME_GB: std::ops::RangeInclusive<u64> = 10..=512;
const BESIDES_GB: u64 = 5;
/// How long a container may take until it answers health checks, with models in the image and with models to fetch.
const STARTUP_SECONDS: u32 = 600;
const FETCH_SECONDS: u32 = 3600;
/// How long the logs of the containers are kept, in days.
const LOG_DAYS: u32 = 90;
/// How long the old instances of a deployment stay after it.
const KEEP_SECONDS: u32 = 120;
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
        let instance_type = endpoint.instance_type.as_deref().unwrap_or(INSTANCE_TYPE);
        self.check_instance_type(instance_type);
        let Some(image) = &endpoint.image else {
            let cause = "there is no image: `registry.url` is not set, or none can be made of this program";
            let (account, region) = (&self.site.account, &self.site.region);
            let suffix = partition(region).dns_suffix;
            let fix = format!("write `registry: {{ url: {account}.dkr.ecr.{region}.{suffix}/textnlp }}`");
            return self.problem("image", cause, fix);
        };
        let Some(environment) = self.environment(endpoint) else { return };
        let is_fetched = |model: &Model| model.source != "bundled";
        let fetches = endpoint.models.iter().any(is_fetched);
        let registry = ResourceId::part(&self.site.name, &endpoint.registry, "repository").ok();
        let logs = self.part(
            "logs",
            "aws.log-group",
            &json!({ "name": format!("/aws/sagemaker/Endpoints/{name}"), "retention_days": LOG_DAYS, "key": null }),
        );
        let role = self.execution_role(endpoint, &name, registry.as_ref());
        let Some(role) = role else { return };
        // SageMaker takes a tag or a digest, and not both.
        let image = image.split_once('@').map_or_else(
            || image.clone(),
            |(tagged, digest)| format!("{}@{digest}", tagged.rsplit_once(':').map_or(tagged, |(name, _)| name)),
        );
        let model = self.part(
            "model",
            "aws.sagemaker-model",
            &json!({
                "name": name,
                "image": image,
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
        let config = self.part(
            "config",
            "aws.endpoint-config",
            &json!({
                "name": name,
                "key": self.data_key(),
                "variants": [{
                    "name": VARIANT,
                    "model": output(&model, "name"),
                    "instance_type": instance_type,
                    "count": endpoint.replicas,
                    "weight": 1,
                    "volume_gb": volume_gb.clamp(*VOLUME_GB.start(), *VOLUME_GB.end()),
                    "download_seconds": STARTUP_SECONDS,
                    "startup_seconds": if fetches { FETCH_SECONDS } else { STARTUP_SECONDS },
                }],
            }),
        );
        let (alarm, wait_seconds) = self.errors_alarm(endpoint, &name);
        let (Some(config), Some(alarm)) = (config, alarm) else { return };
        let made = self.part(
            "endpoint",
            "aws.endpoint",
            &json!({
                "name": name,
                "config": output(&config, "name"),
                "deployment": {
                    "routing": "ALL_AT_ONCE",
                    "step_percent": null,
                    "wait_seconds": wait_seconds,
                    "keep_seconds": KEEP_SECONDS,
                    "alarms": [output(&alarm, "name")],
                },
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

    /// GPUs would cost money and stay idle; there is no image for arm64; disks of an instance's own take no key.
    fn check_instance_type(&mut self, instance_type: &str) {
        let family = instance_type.strip_prefix("ml.").and_then(|rest| rest.split_once('.')).map(|(family, _)| family);
        if family.is_some_and(|family| FAMILIES.contains(&family)) {
            return;
        }
        let cause = format!("endpoints do not run on `{instance_type}`: they use CPUs of x86-64 only");
        let families: Vec<String> = FAMILIES.iter().map(|family| format!("ml.{family}")).collect();
        self.problem("instance_type", cause, format!("choose one of {}, such as {INSTANCE_TYPE}", families.join(", ")));
    }

    /// The variables of the container.
    fn environment(&mut self, endpoint: &InferenceEndpoint) -> Option<BTreeMap<String, String>> {
        let before = self.problems.len();
        let mut listed = Vec::new();
        let mut paths = BTreeMap::new();
        for (place, model) in endpoint.models.iter().enumerate() {
            if model.source.starts_with("file:") {
                let cause = format!("model `{}` is on this machine, which SageMaker does not reach", model.name);
                self.problem("models", cause, "use a source that it reaches: `bundled`, `s3:`, `hf:`, `https:`");
            }
            if model.source.starts_with("bucket:") {
                let cause =
                    format!("model `{}` is in the bucket of the site, which may be an existing one", model.name);
                self.problem("models", cause, "write its address: `s3://BUCKET/PATH`");
            }
            let Some(digest) = &model.digest else {
                let cause = format!("model `{}` has no digest, so it cannot be verified", model.name);
                self.problem("models", cause, "add `digest: sha256:…`; `textnlp-deploy model pull` prints it");
                continue;
            };
            let path = format!("{FOLDER}/models/{place}");
            listed.push(json!({ "name": model.name, "source": model.source, "digest": digest, "path": path }));
            paths.insert(model.name.as_str(), path);
        }
        let delivery = json!({
            "cache": format!("{FOLDER}/cache"), "max_cache_bytes": endpoint.max_cache_bytes, "models": listed,
        });
        let config = configured(endpoint.config.clone(), &paths);
        let mut environment = BTreeMap::new();
        if endpoint.models.iter().any(|model| model.source.starts_with("s3:")) {
            environment.insert("AWS_REGION".to_owned(), self.site.region.clone());
        }
        for (name, document) in [(SERVER, config), (MODELS, delivery)] {
            let text = Spec::of(&document).to_string();
            let pieces = pieces(&text).into_iter().enumerate();
            environment.extend(pieces.map(|(number, piece)| (format!("{name}_{number}"), piece)));
        }
        let bytes: usize = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > MOST_OF_ALL {
            let cause =
                format!("the configuration has {bytes} bytes, and SageMaker passes {MOST_OF_ALL} to a container");
            self.problem("models", cause, "serve fewer models with one endpoint");
        }
        (self.problems.len() == before).then_some(environment)
    }

    /// The role of the containers: what SageMaker does with it, and nothing for the servers themselves.
    fn execution_role(
        &mut self,
        endpoint: &InferenceEndpoint,
        name: &str,
        registry: Option<&ResourceId>,
    ) -> Option<ResourceId> {
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
        ];
        if let Some(registry) = registry {
            let actions = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"];
            statements.push(may("Image", &actions, output(registry, "arn")));
        }
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

/// The server's configuration with the settings that only a container of SageMaker has. The server itself turns off what
/// is not for there.
fn configured(mut config: Value, paths: &BTreeMap<&str, String>) -> Value {
    let tree = &mut config["textnlp"];
    tree["api"]["listen"] = json!(LISTEN);
    if let Some(drain) = tree["api"]["drain_seconds"].as_u64() {
        tree["api"]["drain_seconds"] = json!(drain.min(MOST_DRAIN_SECONDS));
    }
    tree["models"]["cache_dir"] = json!(FOLDER);
    tree["database"]["url"] = json!(format!("sqlite://{FOLDER}/textnlp.db"));
    for model in tree["models"]["serve"].as_array_mut().into_iter().flatten() {
        if let Some(path) = model["name"].as_str().and_then(|name| paths.get(name)) {
            model["path"] = json!(path);
        }
    }
    config
}

/// A text in pieces that fit into variables.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for letter in text.chars() {
        if let Some(last) = pieces.last_mut().filter(|last| last.len() + letter.len_utf8() <= MOST_OF_VALUE) {
            last.push(letter);
        } else {
            pieces.push(letter.to_string());
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_fit_into_variables_and_join_to_the_text() {
        for text in [String::new(), "a".repeat(MOST_OF_VALUE), "ä".repeat(2000)] {
            let pieces = pieces(&text);
            assert!(pieces.iter().all(|piece| piece.len() <= MOST_OF_VALUE), "{}", text.len());
            assert_eq!(pieces.concat(), text);
        }
        assert_eq!(pieces(&"a".repeat(MOST_OF_VALUE + 1)).len(), 2);
    }
}
