//! Every family says what `transformers` says (`golden/make.py` made the files), alone, in ragged batches and after
//! rewinding; what cannot be served is refused by name. With the feature `cuda`, on a machine with a GPU, all of it is
//! computed there.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use textnlp_candle::{Candle, Checkpoint, DeviceKind, Gpu, LoadOptions};
use textnlp_inference::cpu::{self, Quant};
use textnlp_inference::decoder::{Spec, families};
use textnlp_inference::executor::{Executor, LogitRows, RowSpan, SeqId, StepError};
use textnlp_inference::format::{self, FormatError, Tensors};

#[derive(serde::Deserialize)]
struct Expected {
    tokens: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

/// Golden models of the own kernels whose families, windows or rotations those here do not have.
const OF_OWN_KERNELS: [&str; 5] = ["gemma", "gemma2", "gemma3", "phi3-long", "qwen3-window"];

fn golden(name: &str) -> PathBuf {
    let folder = if OF_OWN_KERNELS.contains(&name) { "../inference/tests/golden" } else { "tests/golden" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name)
}

fn names() -> Vec<String> {
    let folders = std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<String> =
        folders.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.extend(OF_OWN_KERNELS.map(str::to_owned));
    names.sort();
    assert!(names.len() > 25);
    names
}

fn expected(name: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(golden(name).join("expected.json")).unwrap()).unwrap()
}

static DEVICE: LazyLock<DeviceKind> = LazyLock::new(|| match Gpu::find(0) {
    Ok(_) => DeviceKind::Cuda(0),
    // `server/cuda/check` sets it where it sees a GPU.
    Err(why) if std::env::var_os("TEXTNLP_TEST_GPU").is_some() => panic!("{why}"),
    Err(why) => {
        eprintln!("SKIPPED: the same on a GPU: {why}");
        DeviceKind::Cpu
    }
});

fn options() -> LoadOptions {
    LoadOptions { kv_positions: Some(1024), threads: 2, device: *DEVICE, ..LoadOptions::default() }
}

fn load_from(folder: &Path, quantize: Option<Quant>) -> Candle {
    load_with(folder, LoadOptions { quantize, ..options() })
}

fn load_with(folder: &Path, options: LoadOptions) -> Candle {
    let checkpoint = Checkpoint::open(folder).unwrap_or_else(|e| panic!("{e}"));
    Candle::load(&checkpoint, &options).unwrap_or_else(|e| panic!("{e}")).0
}

fn load(name: &str) -> Candle {
    load_from(&golden(name), None)
}

/// What bounds the error of products in the type of a golden model: 11 bits of f16, 8 of bf16 where the device
/// multiplies with it.
fn bits_kept(name: &str) -> u32 {
    match name.rsplit_once('-') {
        Some((_, "f16")) => 11,
        Some((_, "bf16")) if *DEVICE != DeviceKind::Cpu => 8,
        _ => 24,
    }
}

/// The golden models whose text can be compared: less exact products choose other tokens.
fn exact_names() -> Vec<String> {
    names().into_iter().filter(|name| bits_kept(name) == 24).collect()
}

fn argmax(row: &[f32]) -> u32 {
    (0..).zip(row).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
}

fn all_logits(executor: &mut dyn Executor, tokens: &[u32]) -> Vec<Vec<f32>> {
    let seq = executor.open(tokens.len()).unwrap();
    executor.step(&[RowSpan { seq, start: 0, tokens, logits: LogitRows::All }]).unwrap();
    let vocab = executor.shape().vocab;
    let rows = executor.logits().chunks(vocab).map(<[f32]>::to_vec).collect();
    executor.close(seq);
    rows
}

/// By how much rows differ from others, as a part of these.
fn relative_error(exact: &[Vec<f32>], found: &[Vec<f32>]) -> f32 {
    let squares = |f: &dyn Fn(f32, f32) -> f32| -> f32 {
        exact.iter().flatten().zip(found.iter().flatten()).map(|(a, b)| f(*a, *b).powi(2)).sum()
    };
    (squares(&|a, b| a - b) / squares(&|a, _| a)).sqrt()
}

fn difference(rows: &[Vec<f32>], expected: &Expected) -> f32 {
    let found = expected.positions.iter().map(|at| &rows[*at]);
    let pairs = found.flatten().zip(expected.logits.iter().flatten());
    pairs.fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

fn largest(expected: &Expected) -> f32 {
    expected.logits.iter().flatten().fold(0.0, |most, v| most.max(v.abs()))
}

fn last(seq: SeqId, start: usize, tokens: &[u32]) -> RowSpan<'_> {
    RowSpan { seq, start, tokens, logits: LogitRows::Last }
}

/// Feeds `tokens` from `start` on and answers the greedy next token.
fn next(candle: &mut Candle, seq: SeqId, start: usize, tokens: &[u32]) -> u32 {
    candle.step(&[last(seq, start, tokens)]).unwrap();
    argmax(candle.logits())
}

#[test]
fn logits_are_those_of_transformers() {
    for name in names() {
        let expected = expected(&name);
        let rows = all_logits(&mut load(&name), &expected.tokens);
        let bound = match bits_kept(&name) {
            24 => 1e-4,
            bits => 10.0 / f32::powi(2.0, bits as i32) * largest(&expected),
        };
        let found = difference(&rows, &expected);
        assert!(found <= bound, "{name}: differs by {found}, allowed is {bound}");
    }
}

#[test]
fn greedy_text_is_that_of_transformers_however_the_prompt_is_cut() {
    for name in &exact_names() {
        let (mut candle, expected) = (load(name), expected(name));
        for cut in [1, 5, expected.tokens.len()] {
            let mut text = expected.tokens.clone();
            let seq = candle.open(text.len() + expected.greedy.len()).unwrap();
            let (mut at, mut token) = (0, 0);
            for part in expected.tokens.chunks(cut) {
                token = next(&mut candle, seq, at, part);
                at += part.len();
            }
            for _ in 1..expected.greedy.len() {
                text.push(token);
                token = next(&mut candle, seq, text.len() - 1, &[token]);
            }
            text.push(token);
            candle.close(seq);
            assert_eq!(text[expected.tokens.len()..], expected.greedy, "{name} in parts of {cut}");
        }
    }
}

/// A file of the own kernels' golden rotations: another configuration of their golden Llama, and what it says then.
#[derive(serde::Deserialize)]
struct Rotated {
    config: serde_json::Value,
    /// The context that it is loaded with.
    context: Option<usize>,
    #[serde(flatten)]
    expected: Expected,
}

#[test]
fn scaled_rotations_are_those_of_transformers() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../inference/tests/golden");
    let mut kinds = 0;
    for file in std::fs::read_dir(own.join("rope")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let Rotated { config, context, expected } = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(own.join("llama/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let mut candle = load_with(folder.path(), LoadOptions { context, ..options() });
        let found = difference(&all_logits(&mut candle, &expected.tokens), &expected);
        assert!(found <= 1e-4 * largest(&expected), "{name}: differs by {found}");
        let seq = candle.open(expected.tokens.len() + expected.greedy.len()).unwrap();
        let mut token = next(&mut candle, seq, 0, &expected.tokens);
        for (at, wanted) in (expected.tokens.len()..).zip(&expected.greedy) {
            assert_eq!(token, *wanted, "{name}: token {at}");
            token = next(&mut candle, seq, at, &[token]);
        }
        kinds += 1;
    }
    assert_eq!(kinds, 9);
}

/// Three sequences of other lengths, the golden one in their middle: its prompt beside their decoding, then all decode.
#[test]
fn greedy_text_is_the_same_in_a_ragged_batch() {
    for name in &exact_names() {
        let (mut candle, expected) = (load(name), expected(name));
        let vocab = candle.shape().vocab;
        let (prompt, steps) = (&expected.tokens, expected.greedy.len());
        let seqs: Vec<SeqId> = (0..3).map(|_| candle.open(prompt.len() + steps + 7).unwrap()).collect();
        let before = [&prompt[..5], &prompt[3..20]];
        candle.step(&[last(seqs[0], 0, before[0]), last(seqs[2], 0, before[1])]).unwrap();
        let mut tokens: Vec<u32> = candle.logits().chunks(vocab).map(argmax).collect();
        candle
            .step(&[
                last(seqs[0], 5, &tokens[..1]),
                RowSpan { logits: LogitRows::None, ..last(seqs[1], 0, &prompt[..9]) },
                last(seqs[1], 9, &prompt[9..]),
                last(seqs[2], 17, &tokens[1..]),
            ])
            .unwrap();
        let mut said = Vec::new();
        for step in 0..steps {
            tokens = candle.logits().chunks(vocab).map(argmax).collect();
            assert_eq!(tokens.len(), 3);
            said.push(tokens[1]);
            let spans = [
                last(seqs[0], 6 + step, &tokens[..1]),
                last(seqs[1], prompt.len() + step, &tokens[1..2]),
                last(seqs[2], 18 + step, &tokens[2..]),
            ];
            candle.step(&spans).unwrap();
        }
        assert_eq!(said, expected.greedy, "{name}");
    }
}

#[test]
fn rewound_sequence_says_what_it_said_before() {
    for name in &exact_names() {
        let (mut candle, expected) = (load(name), expected(name));
        let prompt = &expected.tokens;
        let seq = candle.open(prompt.len() + 8).unwrap();
        assert_eq!(next(&mut candle, seq, 0, prompt), expected.greedy[0], "{name}");
        // Something else from the middle on, then the prompt again from there.
        let other: Vec<u32> = prompt[4..].iter().rev().copied().collect();
        next(&mut candle, seq, 11, &other);
        assert_eq!(next(&mut candle, seq, 11, &prompt[11..]), expected.greedy[0], "{name}");
        assert_eq!(next(&mut candle, seq, prompt.len(), &expected.greedy[..1]), expected.greedy[1], "{name}");
    }
}

#[test]
fn fewer_bits_are_close_and_smaller() {
    let folder = tempfile::tempdir().unwrap();
    widened(&golden("llama"), folder.path());
    let tokens = expected("llama").tokens;
    let mut whole = load_from(folder.path(), None);
    let (exact, mut last) = (all_logits(&mut whole, &tokens), whole.memory().weights / 2);
    for (quantize, bound) in [(Quant::Q8_0, 0.05), (Quant::Q4_0, 0.6)] {
        let mut small = load_from(folder.path(), Some(quantize));
        assert!(small.memory().weights < last, "{quantize}: {:?} {:?}", small.memory(), whole.memory());
        last = small.memory().weights;
        let estimate = Checkpoint::open(folder.path()).unwrap().weight_bytes(Some(quantize), DeviceKind::Cpu);
        assert!(50 * estimate.abs_diff(last) <= last, "{quantize}: {estimate} for {last}");
        let error = relative_error(&exact, &all_logits(&mut small, &tokens));
        assert!(error > 0.0 && error < bound, "{quantize}: {error}");
    }
}

/// Beside the own kernels, which compute the numbers of the same file in f32 exactly. Products with blocks round the
/// other side to 8 bits, and those of f16 are in f16.
#[test]
fn gguf_models_say_what_the_own_kernels_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../inference/tests/golden");
    let mut seen = BTreeSet::new();
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let twin = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once('-'));
        let Some((model, kind)) = twin else { continue };
        let expected = std::fs::read(folder.join(model).join("expected.json")).unwrap();
        let Expected { tokens, .. } = serde_json::from_slice(&expected).unwrap();
        let own = cpu::LoadOptions { quantize: Some(Quant::F32), threads: 1, ..cpu::LoadOptions::default() };
        let (mut own, _) = cpu::Cpu::load(&format::Checkpoint::open(&path).unwrap(), &own).unwrap();
        let exact = all_logits(&mut own, &tokens);
        // What is to be held otherwise is decoded first.
        let error = relative_error(&exact, &all_logits(&mut load_from(&path, Some(Quant::F32)), &tokens));
        assert!(error < 1e-4, "{name} in f32: the error is {error}");
        if model == "gemma3" {
            // It is held in f32, unless f16 is asked for.
            let options = LoadOptions { quantize: Some(Quant::F16), ..options() };
            let refused = Candle::load(&Checkpoint::open(&path).unwrap(), &options).err().unwrap().to_string();
            assert!(refused.contains("does not fit the range of f16"), "{refused}");
        }
        let mut candle = load_from(&path, None);
        let error = relative_error(&exact, &all_logits(&mut candle, &tokens));
        let bound = if kind == "f16" { 0.01 } else { 0.08 };
        assert!(error < bound, "{name}: the error is {error}");
        let (held, estimate) = (candle.memory().weights, Checkpoint::open(&path).unwrap().weight_bytes(None, *DEVICE));
        assert!(50 * estimate.abs_diff(held) <= held, "{name}: {estimate} for {held}");
        seen.insert(kind.to_owned());
    }
    assert_eq!(seen, ["f16", "q4_0", "q5_0", "q8_0"].map(str::to_owned).into());
}

/// A GGUF Llama with matrices in one type and its values in another.
fn gguf_llama(path: &Path, kind: GgmlDType, values: GgmlDType) {
    let (width, ffn, kv, vocab) = (256, 512, 128, 64);
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) / 4.0
    };
    let ones = || QTensor::quantize(&Tensor::ones(width, DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap();
    let mut matrix = |kind, outputs: usize, inputs: usize| {
        let numbers: Vec<f32> = (0..outputs * inputs).map(|_| random()).collect();
        QTensor::quantize(&Tensor::from_vec(numbers, (outputs, inputs), &Device::Cpu).unwrap(), kind).unwrap()
    };
    let tensors = [
        ("token_embd.weight", matrix(kind, vocab, width)),
        ("output_norm.weight", ones()),
        ("blk.0.attn_norm.weight", ones()),
        ("blk.0.ffn_norm.weight", ones()),
        ("blk.0.attn_q.weight", matrix(kind, width, width)),
        ("blk.0.attn_k.weight", matrix(kind, kv, width)),
        ("blk.0.attn_v.weight", matrix(values, kv, width)),
        ("blk.0.attn_output.weight", matrix(kind, width, width)),
        ("blk.0.ffn_gate.weight", matrix(kind, ffn, width)),
        ("blk.0.ffn_up.weight", matrix(kind, ffn, width)),
        ("blk.0.ffn_down.weight", matrix(kind, width, ffn)),
    ];
    let number = |n: usize| Value::U32(n as u32);
    let metadata = [
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.block_count", number(1)),
        ("llama.context_length", number(128)),
        ("llama.embedding_length", number(width)),
        ("llama.feed_forward_length", number(ffn)),
        ("llama.attention.head_count", number(4)),
        ("llama.attention.head_count_kv", number(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ];
    let metadata: Vec<_> = metadata.iter().map(|(name, value)| (*name, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

#[test]
fn every_block_type_says_what_the_own_kernels_say() {
    use GgmlDType::*;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let tokens: Vec<u32> = (0..40).map(|n| n * 7 % 64).collect();
    for kind in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
        for values in [kind, if kind == Q6K { Q4K } else { Q6K }, F32, F16, BF16] {
            gguf_llama(&path, kind, values);
            let own = cpu::LoadOptions { quantize: Some(Quant::F32), threads: 1, ..cpu::LoadOptions::default() };
            let (mut own, _) = cpu::Cpu::load(&format::Checkpoint::open(&path).unwrap(), &own).unwrap();
            let exact = all_logits(&mut own, &tokens);
            let mut candle = load_from(&path, None);
            let error = relative_error(&exact, &all_logits(&mut candle, &tokens));
            assert!(error < 0.05, "{kind:?} with {values:?}: the error is {error}");
            let seq = candle.open(tokens.len()).unwrap();
            let rows = (0..tokens.len()).map(|at| {
                candle.step(&[last(seq, at, &tokens[at..=at])]).unwrap();
                candle.logits().to_vec()
            });
            let error = relative_error(&exact, &rows.collect::<Vec<_>>());
            assert!(error < 0.05, "{kind:?} with {values:?}, row by row: the error is {error}");
            let estimate = |quantize| Checkpoint::open(&path).unwrap().weight_bytes(quantize, *DEVICE);
            for (quantize, held) in [
                (None, candle.memory().weights),
                (Some(Quant::Q8_0), load_from(&path, Some(Quant::Q8_0)).memory().weights),
                (Some(Quant::Q4_0), load_from(&path, Some(Quant::Q4_0)).memory().weights),
            ] {
                let estimate = estimate(quantize);
                let what = format!("{kind:?} with {values:?} as {quantize:?}");
                assert!(50 * estimate.abs_diff(held) <= held, "{what}: {estimate} for {held}");
            }
        }
    }
}

/// A Llama whose rows are multiples of 32, with numbers that repeat.
fn widened(from: &Path, to: &Path) {
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    for (key, value) in [("hidden_size", 64), ("intermediate_size", 96), ("head_dim", 16), ("vocab_size", 61)] {
        config[key] = value.into();
    }
    config["attention_bias"] = false.into();
    config["mlp_bias"] = false.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![61, 64]), ("model.norm".to_owned(), vec![64])];
    shapes.push(("lm_head".to_owned(), vec![61, 64]));
    for layer in 0..2 {
        for (stem, shape) in [
            ("input_layernorm", vec![64]),
            ("post_attention_layernorm", vec![64]),
            ("self_attn.q_proj", vec![64, 64]),
            ("self_attn.k_proj", vec![32, 64]),
            ("self_attn.v_proj", vec![32, 64]),
            ("self_attn.o_proj", vec![64, 64]),
            ("mlp.gate_proj", vec![96, 64]),
            ("mlp.up_proj", vec![96, 64]),
            ("mlp.down_proj", vec![64, 96]),
        ] {
            shapes.push((format!("model.layers.{layer}.{stem}"), shape));
        }
    }
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let tensors = shapes.into_iter().map(|(stem, shape)| {
        let vector = shape.len() == 1;
        let count = shape.iter().product::<usize>();
        let numbers: Vec<f32> =
            (0..count).map(|_| if vector { 1.0 + 0.2 * random() } else { 0.5 * random() }).collect();
        (format!("{stem}.weight"), shape, numbers)
    });
    write_safetensors(&to.join("model.safetensors"), tensors.collect());
}

fn write_safetensors(path: &Path, tensors: Vec<(String, Vec<usize>, Vec<f32>)>) {
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (name, shape, numbers) in tensors {
        let from = bytes.len();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, bytes.len()] });
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
}

#[test]
fn positions_of_all_sequences_are_bounded_and_counted() {
    let mut candle = load("gptj");
    let before = candle.free_positions();
    assert_eq!(candle.open(65), None, "longer than the model's context");
    let mut open = Vec::new();
    while let Some(seq) = candle.open(64) {
        open.push(seq);
    }
    assert_eq!(open.len(), before / 64);
    // 2 layers, keys and values of 4 heads of 6, in f32.
    assert_eq!(candle.memory().kv, 1024 * 2 * 2 * 24 * 4);
    assert_eq!(candle.memory().kv_on_demand, candle.memory().kv);
    let stale = open[0];
    for seq in open {
        candle.close(seq);
    }
    assert_eq!((candle.free_positions(), candle.memory().kv_on_demand), (before, 0));
    candle.close(stale);
    assert_eq!(candle.free_positions(), before, "closed twice");
}

#[test]
fn wrong_rows_are_refused_and_nothing_is_committed() {
    let (mut candle, expected) = (load("falcon-groups"), expected("falcon-groups"));
    let prompt = &expected.tokens;
    let seq = candle.open(prompt.len() + 1).unwrap();
    let span = |seq, start, tokens| [RowSpan { seq, start, tokens, logits: LogitRows::Last }];
    assert!(matches!(candle.step(&span(seq, 1, &[3])), Err(StepError::NotThere(s, 1)) if s == seq));
    assert!(matches!(candle.step(&span(SeqId(77), 0, &[3])), Err(StepError::NotThere(..))));
    assert!(matches!(candle.step(&span(seq, 0, &[])), Err(StepError::NotThere(..))));
    assert!(matches!(candle.step(&span(seq, 0, &[3, 61])), Err(StepError::UnknownToken(_, 61))));
    assert!(matches!(candle.step(&span(seq, 0, &[3; 40])), Err(StepError::NoRoom)));
    assert_eq!(next(&mut candle, seq, 0, prompt), expected.greedy[0]);
}

/// The table of families and the files here say the same.
#[test]
fn every_family_of_the_table_has_golden_files() {
    let family = |name: &str| textnlp_inference::format::family(&golden(name)).unwrap();
    let found: BTreeSet<String> = names().iter().map(|name| family(name)).collect();
    assert_eq!(found, families().map(str::to_owned).collect());
}

/// A copy of a golden model.
fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(golden(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

/// Why a model cannot be loaded; the check of its files says the same.
fn refused(folder: &Path) -> Option<String> {
    let checked = Spec::open(folder).and_then(|spec| spec.check(&Tensors::open(folder)?, false));
    let options = LoadOptions { kv_positions: Some(64), threads: 1, ..LoadOptions::default() };
    let loaded = Checkpoint::open(folder).and_then(|found| Candle::load(&found, &options).map(drop));
    let said = |result: Result<(), FormatError>| result.err().map(|error| error.to_string());
    let (checked, loaded) = (said(checked), said(loaded));
    assert_eq!(checked, loaded, "{}", folder.display());
    loaded
}

/// Copies a golden model, changes its configuration and answers why it cannot be loaded.
fn refusal(name: &str, change: impl Fn(&mut serde_json::Map<String, serde_json::Value>)) -> String {
    let folder = copied(name);
    let path = folder.path().join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, serde_json::Value::Object(config).to_string()).unwrap();
    refused(folder.path()).unwrap_or_else(|| panic!("{name} is loaded"))
}

/// Deployments check files without loading them.
#[test]
fn check_of_files_passes_golden_models_and_finds_each_missing_tensor() {
    let mut renamed = 0;
    for name in names() {
        let folder = copied(&name);
        assert_eq!(refused(folder.path()), None);
        let path = folder.path().join("model.safetensors");
        let Ok(whole) = std::fs::read(&path) else { continue };
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let header: serde_json::Map<_, _> = serde_json::from_slice(&whole[8..][..length]).unwrap();
        let is_left_out =
            |key: &str| key == "__metadata__" || key.ends_with(".attn.bias") || key.ends_with(".masked_bias");
        for tensor in header.keys().filter(|key| !is_left_out(key)) {
            let quoted = format!("\"{tensor}\"");
            let at = whole.windows(quoted.len()).position(|window| window == quoted.as_bytes()).unwrap();
            let mut bytes = whole.clone();
            bytes[at + 1] = b'#';
            std::fs::write(&path, bytes).unwrap();
            let why = refused(folder.path()).unwrap_or_else(|| panic!("{name} is loaded without {tensor}"));
            assert!(why.contains("it is missing") || why.contains("have no such tensor"), "{name}, {tensor}: {why}");
            renamed += 1;
        }
    }
    assert!(renamed > 300, "{renamed}");
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let set = |key: &'static str, value: serde_json::Value| {
        move |config: &mut serde_json::Map<String, serde_json::Value>| {
            drop(config.insert(key.to_owned(), value.clone()))
        }
    };
    let unknown = serde_json::json!({ "rope_theta": 1e4, "rope_type": "mrope", "factor": 4.0 });
    for (name, key, value, said) in [
        ("llama", "model_type", "bloom".into(), "`bloom` has no row"),
        ("llama", "rope_parameters", unknown, "type `mrope` are not supported"),
        ("llama", "rope_scaling", serde_json::json!({ "type": "linear" }), "`factor`: it is missing"),
        ("llama", "rope_scaling", serde_json::json!({ "type": "linear", "factor": 0.0 }), "of the rotations is 0"),
        ("gemma3", "layer_types", serde_json::json!(["chunked_attention"]), "`chunked_attention` is not supported"),
        ("gemma2", "final_logit_softcapping", (-1.0).into(), "or cap of attention or logits is -1"),
        ("llama", "hidden_act", "mish".into(), "`mish` is not supported"),
        ("llama", "num_attention_heads", 0.into(), "heads is 0"),
        ("llama", "num_attention_heads", 3.into(), "3 heads cannot share 2 key heads"),
        ("llama", "hidden_size", "wide".into(), "not a whole number"),
        ("llama", "hidden_size", 26.into(), "the configuration requires"),
        ("llama", "vocab_size", (1u64 << 40).into(), "vocabulary is"),
        // Tensors that would be left out change what a model says.
        ("llama", "mlp_bias", false.into(), "models of the family `llama` have no such tensor"),
        ("llama", "num_hidden_layers", 1.into(), "its layer is not in the model: the configuration has 1 layers"),
        ("llama", "num_hidden_layers", 3.into(), "it is missing"),
        ("falcon-alibi", "bias", false.into(), "models of the family `falcon` have no such tensor"),
        ("mixtral", "num_experts_per_tok", 6.into(), "experts of a token is 6"),
        ("mixtral", "num_local_experts", 4.into(), "the configuration requires"),
        ("gptj", "rotary_dim", 5.into(), "5 of a head's 6 dimensions"),
        ("falcon-alibi", "multi_query", true.into(), "query_key_value.weight`: its shape"),
        ("gpt_neo", "attention_types", serde_json::json!([[["global"], 9]]), "not a list of kinds"),
        ("gpt_neo", "attention_types", serde_json::json!([[["some"], 2]]), "not a list of kinds"),
        ("opt", "do_layer_norm_before", false.into(), "only `true` is supported"),
        ("opt", "word_embed_proj_dim", 12.into(), "another width"),
        ("phi", "qk_layernorm", true.into(), "only `false` is supported"),
        ("mistral", "sliding_window", 0.into(), "sees nothing"),
        ("olmo", "clip_qkv", (-0.5).into(), "must be positive"),
        ("olmo2", "rms_norm_eps", (-1e-5).into(), "the epsilon of its norms"),
    ] {
        let why = refusal(name, set(key, value));
        assert!(why.contains(said), "{name} with another {key}: {why}");
    }
}

#[test]
fn broken_numbers_fail_the_sequence_by_name() {
    let folder = tempfile::tempdir().unwrap();
    widened(&golden("llama"), folder.path());
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last numbers of the file belong to the last layer.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&70_000f32.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let check = |as_half| Spec::open(folder.path())?.check(&Tensors::open(folder.path())?, as_half);
    check(false).unwrap();
    assert!(check(true).unwrap_err().to_string().contains("too large for f16"));
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert!(check(false).unwrap_err().to_string().contains("not finite"));
    let mut candle = load_from(folder.path(), None);
    let seq = candle.open(4).unwrap();
    let step = candle.step(&[RowSpan { seq, start: 0, tokens: &[1, 2], logits: LogitRows::Last }]);
    assert!(matches!(step, Err(StepError::NotFinite(s)) if s == seq));
}
