//! What the server in each pod needs by the size of its models.

use serde_json::{Value, json};
use textnlp_models::{Catalogue, Entry, Memory, Want, WeightFormat, fit};
use textnlp_provider::cluster::Capacity;
use textnlp_provider::component::Model;
use textnlp_provider::units::{Bytes, Cores};
use textnlp_provider::{cluster, settings};

/// What the gateway beside each server requests, as its template says: thousandths of a core, and bytes.
const GATEWAY: (u32, u64) = (100, 64 << 20);

/// What a pod of the servers requests in all. The container that fetches the models ends before, and requests less.
pub fn server_pod(settings: &cluster::PodResources, models: &[Model], has_gpu: bool) -> Capacity {
    let server = PodResources::of(settings, models, has_gpu);
    Capacity {
        cpu: Cores(server.cpu_request_milli.saturating_add(GATEWAY.0)),
        memory: Bytes(server.memory_request_bytes.saturating_add(GATEWAY.1)),
    }
}

/// Requests and limits of the server in each pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PodResources {
    cpu_request_milli: u32,
    cpu_limit_milli: u32,
    memory_request_bytes: u64,
    memory_limit_bytes: u64,
}

impl PodResources {
    /// What the driver and the libraries of CUDA take of the machine's memory, in bytes; it was not measured.
    const CUDA: u64 = 1 << 30;
    /// The unit to which memory is rounded, in bytes.
    const STEP: u64 = 256 << 20;
    /// Enough for GPT-2; used if the size of the models is unknown.
    const UNKNOWN: Self = Self {
        cpu_request_milli: 2000,
        cpu_limit_milli: 4000,
        memory_request_bytes: 4 << 30,
        memory_limit_bytes: 8 << 30,
    };

    /// Resources for models that need this many bytes of memory. A quarter is left for the autoscaler's target, and the
    /// same again for bursts. CPU scales in the ratio of the default.
    fn for_memory(needed: u64) -> Self {
        let memory = needed.saturating_add(needed / 4).div_ceil(Self::STEP).saturating_mul(Self::STEP);
        let cores = u32::try_from(memory.div_ceil(2 << 30)).unwrap_or(u32::MAX).clamp(2, 16);
        Self {
            cpu_request_milli: cores * 1000,
            cpu_limit_milli: cores * 2000,
            memory_request_bytes: memory,
            memory_limit_bytes: memory.saturating_mul(2),
        }
    }

    /// The settings of a site over values computed from its models.
    pub(super) fn of(settings: &cluster::PodResources, models: &[Model], has_gpu: bool) -> Self {
        let beside = if has_gpu { Self::CUDA } else { 0 };
        let mut computed =
            memory_needed(models).map_or(Self::UNKNOWN, |needed| Self::for_memory(needed.saturating_add(beside)));
        if has_gpu {
            // The GPU computes, and the smallest machines with one have four cores.
            computed.cpu_request_milli = Self::UNKNOWN.cpu_request_milli;
            computed.cpu_limit_milli = Self::UNKNOWN.cpu_limit_milli;
        }
        /// A request above the computed limit raises the limit, and a limit below the computed request lowers the
        /// request.
        fn pair<T: Ord + Copy>(request: Option<T>, limit: Option<T>, computed: (T, T)) -> (T, T) {
            match (request, limit) {
                (Some(request), Some(limit)) => (request, limit),
                (Some(request), None) => (request, computed.1.max(request)),
                (None, Some(limit)) => (computed.0.min(limit), limit),
                (None, None) => computed,
            }
        }
        let (requests, limits) = (&settings.requests, &settings.limits);
        let cpu = pair(
            requests.cpu.map(|cpu| cpu.0),
            limits.cpu.map(|cpu| cpu.0),
            (computed.cpu_request_milli, computed.cpu_limit_milli),
        );
        let memory = pair(
            requests.memory.map(|memory| memory.0),
            limits.memory.map(|memory| memory.0),
            (computed.memory_request_bytes, computed.memory_limit_bytes),
        );
        Self {
            cpu_request_milli: cpu.0,
            cpu_limit_milli: cpu.1,
            memory_request_bytes: memory.0,
            memory_limit_bytes: memory.1,
        }
    }

    /// The `resources` of a container.
    pub(super) fn to_json(self) -> Value {
        let cpu =
            |milli: u32| if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") };
        let memory = |bytes: u64| match bytes {
            whole if whole.is_multiple_of(1 << 30) => format!("{}Gi", whole >> 30),
            whole if whole.is_multiple_of(1 << 20) => format!("{}Mi", whole >> 20),
            bytes => bytes.to_string(),
        };
        json!({
            "requests": { "cpu": cpu(self.cpu_request_milli), "memory": memory(self.memory_request_bytes) },
            "limits": { "cpu": cpu(self.cpu_limit_milli), "memory": memory(self.memory_limit_bytes) },
        })
    }
}

/// The catalogue entry of a model.
fn known(source: &str) -> Option<&'static Entry> {
    let catalogue = Catalogue::embedded();
    catalogue.get(source).or_else(|| {
        let source = source.parse().ok()?;
        catalogue.entries().find(|entry| entry.source == source)
    })
}

/// Upper bound of the models' total size in bytes, at four bytes per parameter. `None` if one is not in the catalogue.
pub(super) fn model_bytes(models: &[Model]) -> Option<u64> {
    models.iter().map(|model| known(&model.source)?.parameters.checked_mul(4)).sum()
}

/// Memory in bytes for all models, computed as `model fit` does. `None` if one is not in the catalogue.
fn memory_needed(models: &[Model]) -> Option<u64> {
    let nothing = Memory { total: 0, available: 0, bound_by: String::new() };
    let needed = models.iter().map(|model| {
        let quantize = match model.quantize {
            None => WeightFormat::AsIs,
            Some(settings::Quantize::F32) => WeightFormat::F32,
            Some(settings::Quantize::F16) => WeightFormat::F16,
            Some(settings::Quantize::Q8) => WeightFormat::Q8_0,
            Some(settings::Quantize::Q4) => WeightFormat::Q4_0,
        };
        let want = Want { quantize, context: model.context.map(u64::from) };
        Some(fit(&known(&model.source)?.summary(), &want, &nothing).needed)
    });
    needed.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPU in cores and memory in MiB, each as request and limit.
    fn of(source: &str, quantize: &str, resources: &Value) -> [u64; 4] {
        let model = json!({ "name": "a", "source": source, "quantize": quantize, "preload": false });
        let models = [serde_json::from_value(model).expect("a model")];
        let settings = serde_json::from_value(resources.clone()).expect("settings");
        let found = PodResources::of(&settings, &models, false);
        [
            u64::from(found.cpu_request_milli) / 1000,
            u64::from(found.cpu_limit_milli) / 1000,
            found.memory_request_bytes >> 20,
            found.memory_limit_bytes >> 20,
        ]
    }

    #[test]
    fn pod_resource_requests_follow_from_the_models() {
        let of = |source: &str, quantize: &str| of(source, quantize, &json!({}));
        let tiny = of("bundled", "q8_0");
        let [gpt2, xl, xl_small] =
            [("gpt2", "f16"), ("gpt2-xl", "f32"), ("gpt2-xl", "q8_0")].map(|(name, how)| of(name, how));
        assert!(
            tiny[2] < gpt2[2] && gpt2[2] < xl_small[2] && xl_small[2] < xl[2],
            "{tiny:?} {gpt2:?} {xl_small:?} {xl:?}"
        );
        assert!(tiny[2] <= 1024 && xl[2] > 6 * 1024 && xl[0] > tiny[0], "{tiny:?} {xl:?}");
        // The size of a model that is not in the catalogue is unknown.
        assert_eq!(of("hf:somebody/else", "f16"), [2, 4, 4096, 8192]);
    }

    #[test]
    fn site_settings_override_pod_resources() {
        let of = |resources: Value| of("gpt2", "f16", &resources);
        let [cpu, cpu_limit, memory, memory_limit] = of(json!({}));
        assert_eq!(of(json!({ "requests": { "cpu": 3 } })), [3, cpu_limit, memory, memory_limit]);
        assert_eq!(of(json!({ "requests": { "memory": "64GiB" } })), [cpu, cpu_limit, 65_536, 65_536]);
        assert_eq!(of(json!({ "limits": { "cpu": "1000m", "memory": "512MiB" } })), [1, 1, 512, 512]);
        let both = json!({
            "requests": { "cpu": 1, "memory": "1GiB" },
            "limits": { "cpu": 8, "memory": "2GiB" },
        });
        assert_eq!(of(both), [1, 8, 1024, 2048]);
    }
}
