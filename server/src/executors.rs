//! Which executor serves a model: the own kernels where they have its family, else candle, if it is part of this build.
//! On a GPU it is candle for all families.

use std::path::Path;
use std::time::Duration;

use textnlp_inference::cpu::{Cpu, Encoder, EncoderOptions, Footprint, LoadOptions, Quant};
use textnlp_inference::executor::Executor;
#[cfg(feature = "candle")]
use textnlp_inference::executor::USUAL_KV_BYTES;
use textnlp_inference::family::Served;
use textnlp_inference::files::{self, ModelFiles};
use textnlp_inference::format::{EncoderCheckpoint, family, is_encoder};
use textnlp_inference::text::Tokenizer;
use textnlp_models::Memory;
use tokio::sync::Semaphore;

use crate::config::{self, Weights};
use crate::error::chain;

/// A model's files, opened by the executor that will serve them.
pub(crate) enum Opened {
    Own(Box<ModelFiles>),
    /// Of an encoder, which only the own kernels serve.
    Encoder(Box<(EncoderCheckpoint, Tokenizer)>),
    #[cfg(feature = "candle")]
    Candle(Box<(textnlp_candle::Checkpoint, Tokenizer, Option<Gpu>)>),
}

/// Where this server's models compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Cpu,
    /// A GPU: every model where it is required, else those that candle can compute.
    Gpu {
        gpu: Gpu,
        is_required: bool,
    },
}

/// A GPU that models compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gpu {
    number: usize,
    /// Bytes of its memory.
    memory: u64,
}

#[cfg(feature = "candle")]
impl Gpu {
    /// The most bytes of keys and values of one model that has more than one context of them: a quarter of the memory.
    fn usual_kv(self) -> usize {
        usize::try_from(self.memory / 4).unwrap_or(usize::MAX).max(USUAL_KV_BYTES)
    }
}

/// A GPU with its memory; at first with a check that models can compute on it.
#[cfg(feature = "candle")]
fn gpu(number: usize, is_first: bool) -> Result<Memory, String> {
    let found = if is_first { textnlp_candle::Gpu::find(number) } else { textnlp_candle::Gpu::read(number) }?;
    let bound_by = format!("GPU {number}, {}", found.name);
    Ok(Memory { total: found.total, available: found.available, bound_by })
}

#[cfg(not(feature = "candle"))]
fn gpu(_number: usize, _is_first: bool) -> Result<Memory, String> {
    Err(NO_CUDA.to_owned())
}

/// Why no GPU computes in this program.
const NO_CUDA: &str = "this program was built without CUDA: use one that `server/cuda/build` made";

/// How long a GPU may compute for other models before it answers a call.
const GPU_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a scrape of the metrics waits for it.
const GPU_SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// One call at a time: a GPU that hangs blocks one thread, however many calls follow.
static GPU_CALLS: Semaphore = Semaphore::const_new(1);

/// Calls a GPU on a separate thread, since the call waits for kernels of other models. `None` after the timeout.
async fn call_gpu<T: Send + 'static>(
    calls: &'static Semaphore,
    timeout: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let answer = async {
        let permit = calls.acquire().await.ok()?;
        let work = move || {
            let _permit = permit;
            call()
        };
        tokio::task::spawn_blocking(work).await.ok()
    };
    tokio::time::timeout(timeout, answer).await.ok()?
}

/// Why the GPU of a model computes nothing more for this process.
#[cfg(feature = "candle")]
pub(crate) async fn fault(gpu: Option<usize>) -> Option<String> {
    let number = gpu?;
    call_gpu(&GPU_CALLS, GPU_TIMEOUT, move || textnlp_candle::Gpu::fault(number)).await?
}

#[cfg(not(feature = "candle"))]
pub(crate) async fn fault(_gpu: Option<usize>) -> Option<String> {
    None
}

/// Whether this program can compute where the setting `models.device` says, on a machine that has it; a job checks it
/// before servers change.
pub(crate) fn supports(device: config::Device) -> Result<(), String> {
    match device {
        config::Device::Cuda(number) if !cfg!(feature = "cuda") => {
            Err(format!("models.device is `cuda:{number}`, but {NO_CUDA}"))
        }
        config::Device::Auto | config::Device::Cpu | config::Device::Cuda(_) => Ok(()),
    }
}

/// Where models compute by the setting `models.device`, or why they cannot.
pub(crate) fn place(device: config::Device) -> Result<Place, String> {
    let (number, is_required) = match device {
        config::Device::Cpu => return Ok(Place::Cpu),
        config::Device::Auto => (0, false),
        config::Device::Cuda(number) => (number, true),
    };
    match gpu(number, true) {
        Ok(memory) => {
            tracing::info!(gpu = memory.bound_by, available = memory.available, "models compute on the GPU");
            Ok(Place::Gpu { gpu: Gpu { number, memory: memory.total }, is_required })
        }
        Err(reason) if is_required => Err(format!("models.device is `cuda:{number}`, but {reason}")),
        Err(reason) => {
            if cfg!(feature = "cuda") {
                tracing::info!(reason, "models compute on the CPU");
            }
            Ok(Place::Cpu)
        }
    }
}

/// A model in memory.
pub(crate) enum Loaded {
    Decoder(Box<dyn Executor>),
    Encoder(Box<Encoder>),
}

/// The number format of weights in memory.
fn quant(weights: Weights) -> Quant {
    match weights {
        Weights::F32 => Quant::F32,
        Weights::F16 => Quant::F16,
        Weights::Q8_0 => Quant::Q8_0,
        Weights::Q4_0 => Quant::Q4_0,
    }
}

/// The executor of a family, or why there is none.
fn executor(family: &str, wanted: Option<config::Executor>) -> Result<config::Executor, String> {
    let row = Served::of(family);
    let family = family.escape_debug();
    match (wanted, row) {
        (Some(config::Executor::Own), Some(Served { own: false, .. })) => {
            Err(format!("the own kernels do not serve `{family}` models; leave out `executor`, or set it to `candle`"))
        }
        (Some(config::Executor::Candle), Some(Served { candle: false, .. }) | None) => {
            Err(format!("the candle executor does not serve `{family}` models; leave out `executor`"))
        }
        (Some(wanted), _) => Ok(wanted),
        (None, Some(Served { own: false, .. })) => Ok(config::Executor::Candle),
        // Of a family that nothing serves, the own reader says so.
        (None, _) => Ok(config::Executor::Own),
    }
}

/// The executor of a family at a place, and its GPU.
fn executor_at(
    place: Place,
    family: &str,
    wanted: Option<config::Executor>,
) -> Result<(config::Executor, Option<Gpu>), String> {
    let Place::Gpu { gpu, is_required } = place else { return Ok((executor(family, wanted)?, None)) };
    let reason = match (wanted, Served::of(family)) {
        (Some(config::Executor::Own), _) => "the own kernels compute on the CPU only: leave out `executor`".to_owned(),
        (_, Some(Served { candle: true, .. })) => return Ok((config::Executor::Candle, Some(gpu))),
        _ => format!("`{}` models compute on the CPU only", family.escape_debug()),
    };
    match is_required {
        true => Err(format!("models.device is `cuda:{}`, but {reason}", gpu.number)),
        false => Ok((executor(family, wanted)?, None)),
    }
}

impl Opened {
    /// Opens a model's files; no weight is read.
    pub(crate) fn new(model: &config::Model, place: Place) -> Result<Opened, String> {
        let path = model.path.as_std_path();
        let family = family(path).map_err(|error| chain(&error))?;
        let (executor, gpu) = executor_at(place, &family, model.executor)?;
        match executor {
            config::Executor::Own if is_encoder(path) == Some(true) => {
                let checkpoint = EncoderCheckpoint::open(path).map_err(|error| chain(&error))?;
                let tokenizer = Tokenizer::from_directory(path).map_err(|error| chain(&error))?;
                Ok(Opened::Encoder(Box::new((checkpoint, tokenizer))))
            }
            config::Executor::Own => {
                ModelFiles::open(path).map(Box::new).map(Opened::Own).map_err(|error| chain(&error))
            }
            config::Executor::Candle => open_candle(path, &family, gpu),
        }
    }

    /// How many numbers the model has.
    pub(crate) fn parameters(&self) -> u64 {
        match self {
            Opened::Own(files) => files.checkpoint.parameters(),
            Opened::Encoder(files) => files.0.parameters(),
            #[cfg(feature = "candle")]
            Opened::Candle(files) => files.0.parameters(),
        }
    }

    /// Refuses a longer context than the model supports: clients would believe the configuration.
    pub(crate) fn check_context(&self, wanted: Option<usize>) -> Result<(), String> {
        let supported = match self {
            Opened::Own(files) => files.checkpoint.architecture().context,
            Opened::Encoder(files) => files.0.settings().max_tokens,
            #[cfg(feature = "candle")]
            Opened::Candle(files) => files.0.spec().sizes().context,
        };
        match wanted.filter(|wanted| *wanted > supported) {
            Some(wanted) => Err(format!(
                "its `context` is set to {wanted} tokens, and it supports {supported}: lower the setting, or leave it out"
            )),
            None => Ok(()),
        }
    }

    fn tokenizer(&self) -> &Tokenizer {
        match self {
            Opened::Own(files) => &files.tokenizer,
            Opened::Encoder(files) => &files.1,
            #[cfg(feature = "candle")]
            Opened::Candle(files) => &files.1,
        }
    }

    /// The tokenizer of the files.
    pub(crate) fn into_tokenizer(self) -> Tokenizer {
        match self {
            Opened::Own(files) => files.tokenizer,
            Opened::Encoder(files) => files.1,
            #[cfg(feature = "candle")]
            Opened::Candle(files) => files.1,
        }
    }

    /// The number of the GPU that it will compute on; `None` is the CPU.
    pub(crate) fn gpu(&self) -> Option<usize> {
        match self {
            Opened::Own(_) | Opened::Encoder(_) => None,
            #[cfg(feature = "candle")]
            Opened::Candle(files) => files.2.map(|gpu| gpu.number),
        }
    }

    /// The memory that it will take.
    pub(crate) fn footprint(&self, model: &config::Model) -> Result<Footprint, String> {
        let quantize = model.quantize.map(quant);
        match self {
            Opened::Own(files) => {
                let options = LoadOptions { quantize, context: model.context, ..LoadOptions::default() };
                Footprint::of(&files.checkpoint, &options).map_err(|error| chain(&error))
            }
            Opened::Encoder(files) => {
                let options = EncoderOptions { quantize, max_tokens: model.context, ..EncoderOptions::default() };
                Footprint::of_encoder(&files.0, &options).map_err(|error| chain(&error))
            }
            #[cfg(feature = "candle")]
            Opened::Candle(files) => {
                let checkpoint = &files.0;
                let held = quantize.unwrap_or(Quant::F32);
                let mut found = Footprint::estimate(checkpoint.spec().sizes(), checkpoint.parameters(), held);
                let device = device(files.2);
                found.weights = checkpoint.weight_bytes(quantize, device);
                let limit = files.2.map_or(USUAL_KV_BYTES, Gpu::usual_kv);
                Ok(found.with_kv(checkpoint.keeps_half(quantize, device), limit).with_context(model.context))
            }
        }
    }

    /// What an operator should know about files that can be served.
    pub(crate) fn notes(&self) -> Vec<String> {
        let rows = match self {
            Opened::Own(files) => files.checkpoint.architecture().vocab,
            Opened::Encoder(files) => files.0.architecture().vocab,
            #[cfg(feature = "candle")]
            Opened::Candle(files) => files.0.spec().shape.vocab,
        };
        files::notes(self.tokenizer(), rows)
    }

    /// Reads the weights, and makes room for keys and values of that count of positions, which an encoder does not
    /// keep. The notes say what an operator should know about how they are held.
    pub(crate) fn load(
        &self,
        model: &config::Model,
        threads: usize,
        kv_positions: usize,
    ) -> Result<(Loaded, Vec<String>), String> {
        let (quantize, context, kv_positions) = (model.quantize.map(quant), model.context, Some(kv_positions));
        match self {
            Opened::Own(files) => {
                let options = LoadOptions { quantize, context, kv_positions, threads, ..LoadOptions::default() };
                let (cpu, notes) = Cpu::load(&files.checkpoint, &options).map_err(|error| chain(&error))?;
                Ok((Loaded::Decoder(Box::new(cpu)), notes))
            }
            Opened::Encoder(files) => {
                let options = EncoderOptions { quantize, max_tokens: context, threads, isa: None };
                let (encoder, notes) = Encoder::load(&files.0, &options).map_err(|error| chain(&error))?;
                Ok((Loaded::Encoder(Box::new(encoder)), notes))
            }
            #[cfg(feature = "candle")]
            Opened::Candle(files) => {
                let device = device(files.2);
                let options = textnlp_candle::LoadOptions { quantize, context, kv_positions, threads, device };
                let loaded = textnlp_candle::Candle::load(&files.0, &options);
                let (candle, notes) = loaded.map_err(|error| chain(&error))?;
                Ok((Loaded::Decoder(Box::new(candle)), notes))
            }
        }
    }
}

/// The memory where a model computes. Of a GPU that answers with an error it is unknown, and loading says why. An error
/// if the GPU does not answer in time.
pub(crate) async fn memory(number: Option<usize>) -> Result<Memory, String> {
    let Some(number) = number else { return Ok(Memory::here()) };
    let answer = call_gpu(&GPU_CALLS, GPU_TIMEOUT, move || gpu(number, false)).await;
    let answer = answer.ok_or_else(|| {
        format!("GPU {number} did not answer for {} s: it computes for other models, or hangs", GPU_TIMEOUT.as_secs())
    })?;
    Ok(answer.unwrap_or_else(|reason| Memory { total: 0, available: 0, bound_by: reason }))
}

/// The memory of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GpuMemory {
    /// The number of the GPU, as in `models.device`.
    pub(crate) number: usize,
    /// Bytes that all processes have taken.
    pub(crate) used: u64,
    /// All bytes.
    pub(crate) total: u64,
}

/// The memory of the GPU where models compute. `None` on the CPU, and while the GPU does not answer.
pub(crate) async fn gpu_memory(place: Place) -> Option<GpuMemory> {
    let Place::Gpu { gpu: Gpu { number, .. }, .. } = place else { return None };
    let (used, total) = call_gpu(&GPU_CALLS, GPU_SCRAPE_TIMEOUT, move || used_and_total(number)).await??;
    Some(GpuMemory { number, used, total })
}

/// Bytes of a GPU's memory: those that all processes have taken, and all.
#[cfg(feature = "candle")]
fn used_and_total(number: usize) -> Option<(u64, u64)> {
    textnlp_candle::Gpu::read(number).ok().map(|found| (found.used, found.total))
}

#[cfg(not(feature = "candle"))]
fn used_and_total(_number: usize) -> Option<(u64, u64)> {
    None
}

#[cfg(feature = "candle")]
fn device(gpu: Option<Gpu>) -> textnlp_candle::DeviceKind {
    gpu.map_or(textnlp_candle::DeviceKind::Cpu, |gpu| textnlp_candle::DeviceKind::Cuda(gpu.number))
}

#[cfg(feature = "candle")]
fn open_candle(path: &Path, _family: &str, gpu: Option<Gpu>) -> Result<Opened, String> {
    let checkpoint = textnlp_candle::Checkpoint::open(path).map_err(|error| chain(&error))?;
    let tokenizer = match checkpoint.vocabulary().map_err(|error| chain(&error))? {
        Some(vocabulary) => Tokenizer::from_gguf(&vocabulary),
        None => Tokenizer::from_directory(path),
    };
    let tokenizer = tokenizer.map_err(|error| chain(&error))?;
    textnlp_inference::files::check_ends(&tokenizer, checkpoint.spec().sizes().vocab).map_err(|error| chain(&error))?;
    Ok(Opened::Candle(Box::new((checkpoint, tokenizer, gpu))))
}

#[cfg(not(feature = "candle"))]
fn open_candle(_path: &Path, family: &str, _gpu: Option<Gpu>) -> Result<Opened, String> {
    Err(format!(
        "`{}` models need the candle executor, which is not part of this build; build it with `cargo build --release --features candle`",
        family.escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::{Gpu, Place, call_gpu, executor, executor_at, gpu_memory, place};
    use crate::config::{Device, Executor};

    #[test]
    fn a_required_gpu_is_never_replaced_by_the_cpu() {
        let at = |is_required, family, wanted| {
            let gpu = Gpu { number: 1, memory: 1 << 34 };
            executor_at(Place::Gpu { gpu, is_required }, family, wanted)
        };
        for (family, wanted, reason) in [
            ("bert", None, "`bert` models compute on the CPU only"),
            ("llama", Some(Executor::Own), "leave out `executor`"),
            ("bloom", None, "`bloom` models compute on the CPU only"),
        ] {
            let refused = at(true, family, wanted).unwrap_err();
            assert!(refused.starts_with("models.device is `cuda:1`, but ") && refused.contains(reason), "{refused}");
            let (executor, gpu) = at(false, family, wanted).unwrap();
            assert_eq!((executor, gpu), (Executor::Own, None), "{family}");
        }
        for is_required in [true, false] {
            // `gemma3` is the name in GGUF.
            for family in ["llama", "gemma3"] {
                let on_gpu = Ok((Executor::Candle, Some(Gpu { number: 1, memory: 1 << 34 })));
                assert_eq!(at(is_required, family, None), on_gpu, "{family}, {is_required}");
            }
        }
        assert_eq!(executor_at(Place::Cpu, "llama", None), Ok((Executor::Own, None)));
    }

    #[tokio::test]
    async fn memory_is_not_reported_of_the_cpu_and_of_a_gpu_that_is_not_here() {
        assert_eq!(gpu_memory(Place::Cpu).await, None);
        let gpu = Gpu { number: 999, memory: 1 << 34 };
        assert_eq!(gpu_memory(Place::Gpu { gpu, is_required: true }).await, None);
    }

    #[tokio::test]
    async fn a_gpu_that_hangs_blocks_one_thread_and_no_caller() {
        static CALLS: Semaphore = Semaphore::const_new(1);
        let (answer, hangs) = std::sync::mpsc::channel::<()>();
        let (soon, late) = (Duration::from_millis(20), Duration::from_secs(60));
        assert_eq!(call_gpu(&CALLS, soon, move || hangs.recv().is_ok()).await, None);
        assert_eq!(call_gpu(&CALLS, soon, || true).await, None, "it waits for the first call");
        answer.send(()).unwrap();
        assert_eq!(call_gpu(&CALLS, late, || true).await, Some(true));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_cuda_does_not_support_a_required_gpu() {
        let refused = super::supports(Device::Cuda(0)).unwrap_err();
        assert!(refused.starts_with("models.device is `cuda:0`, but this program was built without CUDA"), "{refused}");
        assert_eq!((super::supports(Device::Auto), super::supports(Device::Cpu)), (Ok(()), Ok(())));
    }

    /// Machines that build this have no GPU; where one is, the first assertion is the other way round.
    #[test]
    fn a_gpu_that_is_not_here_is_refused_by_a_sentence_and_not_missed_by_auto() {
        assert_eq!(place(Device::Cpu), Ok(Place::Cpu));
        let refused = place(Device::Cuda(999)).unwrap_err();
        assert!(refused.starts_with("models.device is `cuda:999`, but ") && !refused.contains('\n'), "{refused}");
        if place(Device::Cuda(0)).is_err() {
            assert_eq!(place(Device::Auto), Ok(Place::Cpu));
        }
    }

    #[test]
    fn own_kernels_are_preferred_and_a_wish_that_cannot_be_granted_is_refused() {
        let chosen = |family, wanted| executor(family, wanted);
        assert_eq!(chosen("llama", None), Ok(Executor::Own));
        assert_eq!(chosen("llama", Some(Executor::Candle)), Ok(Executor::Candle));
        assert_eq!(chosen("gptj", None), Ok(Executor::Candle));
        assert_eq!(chosen("gptj", Some(Executor::Candle)), Ok(Executor::Candle));
        assert!(chosen("gptj", Some(Executor::Own)).unwrap_err().contains("do not serve `gptj`"));
        assert!(chosen("bloom", Some(Executor::Candle)).unwrap_err().contains("does not serve `bloom`"));
        assert_eq!(chosen("bloom", None), Ok(Executor::Own), "whose reader refuses it by name");
        assert_eq!((chosen("bert", None), chosen("bert", Some(Executor::Own))), (Ok(Executor::Own), Ok(Executor::Own)));
        assert!(chosen("bert", Some(Executor::Candle)).unwrap_err().contains("does not serve `bert`"));
    }

    #[cfg(not(feature = "candle"))]
    #[test]
    fn build_without_candle_names_the_command_that_adds_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "gptj"}"#).unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let model = crate::config::Model {
            name: "j".into(),
            tenant: None,
            path,
            quantize: None,
            context: None,
            executor: None,
            matryoshka: false,
            parse_special_tokens: false,
            quality_text: None,
        };
        let why = super::Opened::new(&model, super::Place::Cpu).err().unwrap();
        assert!(why.contains("`gptj` models need") && why.contains("cargo build --release --features candle"), "{why}");
    }
}
