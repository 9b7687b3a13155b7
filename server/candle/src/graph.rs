//! Steps of single rows, recorded once for each count of rows and launched as one graph from then on: the GPU computes
//! such a step faster than the processor launches its kernels.
//!
//! Nothing about a step is in its graph but the count of rows: what differs is read from memory that keeps its place.

use crate::Candle;
use crate::kernels::{self, Drawing, Kernels, Recorded, Tables};
use crate::layer::{Cache, Pass, Piece, Stream, angles, capped, scaled, turns};
use crate::step::DrawnRow;
use crate::weights::Weights;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
use candle_core::{DType, Device, Error, Result, Tensor, bail};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use textnlp_inference::decoder::{Feed, Position, Residual, Spec};
use textnlp_inference::rope::Rotation;
use textnlp_inference::sample::Draw;

/// The most rows of a recorded step. Larger ones keep the GPU busy by themselves.
const MOST_ROWS: usize = 128;
/// The same of a model with matrices in blocks: up to 8 rows candle multiplies with them by kernels that can be
/// recorded.
const MOST_ROWS_OF_BLOCKS: usize = 8;
/// The most graphs of a model: all are forgotten when there would be more.
const MOST_GRAPHS: usize = 256;
/// The most bytes of logits of a recorded step: they keep their place in the memory of the GPU.
const MOST_LOGIT_BYTES: usize = 64 << 20;

/// The graphs of a model.
pub(crate) struct Graphs {
    /// The most rows that are recorded; 0 for models whose steps cannot be.
    most: usize,
    inputs: Option<Inputs>,
    /// By the count of rows, and of parts into which their positions are split.
    by_size: HashMap<(usize, usize), Recorded>,
}

/// What graphs read and write, for the most rows.
struct Inputs {
    tokens: Tensor,
    rows: Tensor,
    singles: Tensor,
    caches: Tensor,
    /// One for each rotation.
    angles: Vec<Tensor>,
    logits: Tensor,
    /// Unless the vocabulary is too large for the kernels.
    drawing: Option<Drawing>,
}

impl Graphs {
    /// Of a model that computes on a device.
    pub(crate) fn new(spec: &Spec, device: &Device, weights: &Weights) -> Result<Graphs> {
        let is_recorded = device.is_cuda()
            // candle keeps its bounds for the thread that records, only as long as that thread lives.
            && spec.clip.is_none()
            && matches!(spec.residual, Residual::Pre | Residual::Around)
            && matches!(spec.position, Position::Rotary { .. })
            && !matches!(spec.feed, Feed::Experts { .. })
            && kernels::computes(spec);
        let mut most = MOST_LOGIT_BYTES / size_of::<f32>() / spec.shape.vocab.max(1);
        most = if is_recorded { most.min(MOST_ROWS) } else { 0 };
        if let Some((widest, inputs)) = weights.widest_blocks().filter(|_| is_recorded) {
            most = most.min(MOST_ROWS_OF_BLOCKS);
            // Products with blocks use a workspace of candle's, which a larger product replaces: a graph would go on
            // using what was freed. After this none is larger.
            widest.product(&Tensor::zeros((MOST_ROWS_OF_BLOCKS, inputs), DType::F32, device)?)?;
        }
        Ok(Graphs { most, inputs: None, by_size: HashMap::new() })
    }

    /// Whether steps of that many single rows, which all want their logits, are recorded.
    pub(crate) fn takes(&self, rows: usize) -> bool {
        rows <= self.most
    }

    /// Computes a pass of single rows and answers its logits, rows × vocabulary, which stay until the next one, and the
    /// tokens that are drawn from them.
    pub(crate) fn run(
        &mut self,
        candle: &Candle,
        pieces: &[Piece],
        caches: &[&[Cache]],
        tokens: &[u32],
        draws: &[Option<Draw<'_>>],
    ) -> Result<(Tensor, Vec<DrawnRow>)> {
        let (count, vocab) = (tokens.len(), candle.spec.shape.vocab);
        let device = candle.device.as_cuda_device()?;
        let inputs = match &mut self.inputs {
            Some(inputs) => inputs,
            none => none.insert(Inputs::new(candle, self.most)?),
        };
        let tables = Tables::new(&candle.spec, pieces, caches)?;
        kernels::upload(&inputs.tokens, tokens)?;
        kernels::upload(&inputs.rows, &tables.rows)?;
        kernels::upload(&inputs.singles, &tables.singles)?;
        kernels::upload(&inputs.caches, &tables.caches)?;
        for (to, rotation) in inputs.angles.iter().zip(&candle.rotations) {
            kernels::upload(to, &angles(rotation, pieces))?;
        }
        if let Some(drawing) = &inputs.drawing {
            drawing.set(draws)?;
        }
        let compute = || inputs.compute(candle, pieces, caches, tables.splits);
        let size = (count, tables.splits);
        match self.by_size.get(&size).map(|Recorded(graph)| graph.launch()) {
            Some(Ok(())) => {}
            // Such as for want of memory: this step and later ones are launched kernel by kernel.
            Some(Err(_)) => {
                self.by_size.clear();
                self.most = 0;
                compute()?;
            }
            None => {
                // While this lives, candle keeps the sizes that it sends to the GPU with its launches, and what else it
                // would send during the recording is an error.
                let _kept = device.enable_cuda_graph_htod_cache();
                // This is the step, and loads what a recording cannot.
                compute()?;
                if self.by_size.len() >= MOST_GRAPHS {
                    self.by_size.clear();
                }
                match record(device, compute) {
                    Ok(graph) => drop(self.by_size.insert(size, Recorded(graph))),
                    Err(_) => {
                        self.by_size.clear();
                        self.most = 0;
                    }
                }
            }
        }
        let drawn = match &inputs.drawing {
            Some(drawing) if draws.iter().any(Option::is_some) => drawing.drawn(count)?,
            _ => Vec::new(),
        };
        Ok((inputs.logits.narrow(0, 0, count * vocab)?.reshape((count, vocab))?, drawn))
    }
}

impl Inputs {
    fn new(candle: &Candle, most: usize) -> Result<Inputs> {
        let spec = &candle.spec;
        let zeros = |count: usize, dtype| Tensor::zeros(count, dtype, &candle.device);
        let of_rotation = |rotation: &Rotation| zeros(most * rotation.pairs(), DType::F32);
        Ok(Inputs {
            tokens: zeros(most, DType::U32)?,
            rows: zeros(3 * most, DType::U32)?,
            singles: zeros(most, DType::U32)?,
            caches: zeros(2 * most * spec.shape.layers, DType::I64)?,
            angles: candle.rotations.iter().map(of_rotation).collect::<Result<_>>()?,
            logits: zeros(most * spec.shape.vocab, DType::F32)?,
            drawing: match kernels::draws_from(spec.shape.vocab) {
                true => Some(Drawing::new(most, spec.shape.vocab, usize::MAX, &candle.device)?),
                false => None,
            },
        })
    }

    /// Launches all kernels of a step.
    fn compute(&self, candle: &Candle, pieces: &[Piece], caches: &[&[Cache]], splits: usize) -> Result<()> {
        let (spec, weights) = (&candle.spec, &candle.weights);
        let count = pieces.len();
        let kernels = Kernels::over(
            spec,
            &candle.device,
            self.rows.narrow(0, 0, 3 * count)?,
            self.caches.narrow(0, 0, 2 * count * spec.shape.layers)?,
            Some(self.singles.narrow(0, 0, count)?),
            splits,
        )?;
        let turned = |(angles, rotation): (&Tensor, &Rotation)| {
            let angles = angles.narrow(0, 0, count * rotation.pairs())?.reshape((count, rotation.pairs()))?;
            turns(&angles, rotation.magnitude())
        };
        let rotations = self.angles.iter().zip(&candle.rotations).map(turned).collect::<Result<Vec<_>>>()?;
        let x = kernels.embed(&weights.token, &self.tokens.narrow(0, 0, count)?)?;
        let mut stream = Stream::from(scaled(x, spec.embedding_scale)?);
        let pass = Pass::of_singles(spec, &candle.device, pieces, caches, kernels, rotations);
        for (number, layer) in weights.layers.iter().enumerate() {
            stream = pass.layer(number, layer, stream)?;
        }
        let Some(kernels) = &pass.kernels else { bail!("a pass without kernels") };
        let Stream { rows, more } = stream;
        let (_, normed) = kernels.add_norm(&rows, more.as_ref(), &weights.norm, weights.head.dtype())?;
        let logits = weights.head.product(&normed)?;
        let logits = match spec.logit_cap {
            None => logits,
            cap => capped(logits.to_dtype(DType::F32)?, cap)?,
        };
        kernels.widen(&logits, &self.logits)?;
        match &self.drawing {
            Some(drawing) => drawing.launch(&self.logits, count),
            None => Ok(()),
        }
    }
}

/// Held during a recording, and around calls that wait for all streams of a GPU: both would fail
/// (<https://docs.nvidia.com/cuda/cuda-c-programming-guide/#prohibited-and-unhandled-operations>).
static RECORDING: Mutex<()> = Mutex::new(());

/// A call that no recording may meet.
pub(crate) fn outside_recordings<T>(call: impl FnOnce() -> T) -> T {
    let _held = RECORDING.lock().unwrap_or_else(PoisonError::into_inner);
    call()
}

/// Records what a function launches on a device. Nothing is computed.
fn record(device: &CudaDevice, launch: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    outside_recordings(|| {
        let stream = device.cuda_stream();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(Error::wrap)?;
        // A panic ends the recording, too.
        let launched = catch_unwind(AssertUnwindSafe(launch));
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        if !matches!((&launched, &graph), (Ok(Ok(())), Ok(Some(_)))) {
            // What was freed within a failed recording is an error of the next call otherwise.
            let _ = stream.context().check_err();
        }
        launched.unwrap_or_else(|_| Err(Error::Msg("a panic".to_owned())))?;
        graph.map_err(Error::wrap)?.ok_or_else(|| Error::Msg("nothing was recorded".to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use crate::{Candle, Checkpoint, DeviceKind, LoadOptions};
    use textnlp_inference::executor::{Executor, LogitRows, RowSpan};
    use textnlp_inference::sample::{Draw, Penalties};

    /// Launched as a graph, a step says what its first time said, when it was launched kernel by kernel.
    #[test]
    fn steps_of_decode_rows_are_recorded_once_for_each_size() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let options = LoadOptions { kv_positions: Some(1024), device: DeviceKind::Cuda(0), ..LoadOptions::default() };
        let checkpoint = Checkpoint::open(golden.as_ref()).unwrap();
        let Ok((mut candle, _)) = Candle::load(&checkpoint, &options) else { return };
        let seqs = [candle.open(32).unwrap(), candle.open(20).unwrap()];
        let mut said = Vec::new();
        for _ in 0..3 {
            for count in [1, 2] {
                for start in 0..8 {
                    let spans = seqs.map(|seq| RowSpan { seq, start, tokens: &[7, 9][..1], logits: LogitRows::Last });
                    candle.step(&spans[..count]).unwrap();
                    said.push(candle.logits().to_vec());
                }
            }
        }
        let (first, rest) = said.split_at(16);
        assert!(rest.chunks(16).all(|again| again == first));
        // The tokens are drawn from the same logits, and beside a row whose logits are wanted.
        for (index, start) in (0..8).cycle().take(16).enumerate() {
            let draw = Draw {
                scale: 2.0,
                top_k: 0,
                top_p: 1.0,
                floor: 0.0,
                at: index as f64 / 16.0,
                penalties: Penalties::NONE,
            };
            assert!(candle.draws(&draw));
            let logits = [LogitRows::Drawn(draw), if index < 8 { LogitRows::Last } else { LogitRows::Drawn(draw) }];
            let span = |row: usize| RowSpan { seq: seqs[row], start, tokens: &[7, 9][..1], logits: logits[row] };
            candle.step(&[span(0), span(1)]).unwrap();
            let rows: Vec<&[f32]> = first[8 + start].chunks(first[0].len()).collect();
            let drawn = if index < 8 { &rows[..1] } else { &rows[..] };
            let expected: Vec<Option<u32>> = drawn.iter().map(|row| Some(draw.token(row).unwrap())).collect();
            assert_eq!(candle.drawn(), expected);
            assert_eq!(candle.logits(), if index < 8 { rows[1] } else { &[] });
        }
        assert_eq!(candle.graphs.borrow().by_size.len(), 2);
    }
}
