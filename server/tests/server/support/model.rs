//! Writes a GPT-2 of random numbers with a byte-level tokenizer: every text is made of tokens, and any token may come next.

use std::collections::BTreeMap;

use camino::Utf8Path;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

pub(crate) struct Shape {
    pub(crate) width: usize,
    pub(crate) layers: usize,
    pub(crate) context: usize,
    pub(crate) seed: u64,
    pub(crate) chat: bool,
    /// Weights that are no numbers.
    pub(crate) broken: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { width: 32, layers: 2, context: 256, seed: 1, chat: false, broken: false }
    }
}

pub(crate) const END: u32 = 256;
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
pub(crate) const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

pub(crate) fn write_model(folder: &Utf8Path, shape: Shape) {
    std::fs::create_dir_all(folder).unwrap();
    let write = |name: &str, value: Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    let vocab = 256 + SPECIAL.len();
    write(
        "config.json",
        json!({ "model_type": "gpt2", "vocab_size": vocab, "n_embd": shape.width, "n_layer": shape.layers, "n_head": 4,
                "n_positions": shape.context, "eos_token_id": END, "bos_token_id": END }),
    );
    let mut tokenizer_config = json!({ "bos_token": SPECIAL[0], "eos_token": SPECIAL[0] });
    if shape.chat {
        tokenizer_config["chat_template"] = json!(TEMPLATE);
        tokenizer_config["eos_token"] = json!(SPECIAL[2]);
    }
    write("tokenizer_config.json", tokenizer_config);
    write("tokenizer.json", tokenizer());
    weights(folder, &shape, vocab);
}

/// Replaces the chat template of a model.
pub(crate) fn write_template(folder: &Utf8Path, template: &str) {
    let file = folder.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["chat_template"] = json!(template);
    std::fs::write(file, config.to_string()).unwrap();
}

/// A model with a chat template that writes a text after a prompt of this many bytes, whatever the prompt is: layers of
/// zeros leave the position of a token, which is the direction of the next one.
pub(crate) fn write_script(folder: &Utf8Path, template: &str, prompt: usize, text: &str) {
    let shape = Shape { width: 64, layers: 1, chat: true, ..Shape::default() };
    write_model(folder, Shape { ..shape });
    write_template(folder, template);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (d, vocab) = (shape.width, 256 + SPECIAL.len());
    let words: Vec<f32> = (0..vocab * d).map(|_| random.next()).collect();
    let next = |position: usize| {
        let letter = (position + 1).checked_sub(prompt).and_then(|at| text.as_bytes().get(at).copied());
        letter.map_or(vocab - 1, usize::from)
    };
    let places = (0..shape.context).flat_map(|position| words[next(position) * d..][..d].iter().map(|n| n * 20.0));
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut add =
        |name: &str, size: &[usize], numbers: Vec<f32>| tensors.insert(name.to_owned(), (size.to_vec(), numbers));
    add("wpe.weight", &[shape.context, d], places.collect());
    add("wte.weight", &[vocab, d], words.clone());
    for (name, inner, outer) in
        [("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d)]
    {
        add(&format!("h.0.{name}.weight"), &[inner, outer], vec![0.0; inner * outer]);
        add(&format!("h.0.{name}.bias"), &[outer], vec![0.0; outer]);
    }
    for name in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
        add(&format!("{name}.weight"), &[d], vec![1.0; d]);
        add(&format!("{name}.bias"), &[d], vec![0.0; d]);
    }
    write_tensors(folder, &tensors);
}

/// GPT-2's letters for bytes: printable ones stand for themselves, the rest for letters from 256 on.
fn letters() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    (0..256u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap()
        })
        .collect()
}

fn tokenizer() -> Value {
    let mut vocab: Map<String, Value> =
        letters().iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(n, text)| {
            vocab.insert((*text).to_owned(), json!(256 + n));
            json!({ "id": 256 + n, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                   "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    })
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

fn weights(folder: &Utf8Path, shape: &Shape, vocab: usize) {
    let d = shape.width;
    let mut random = Random(shape.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut add = |name: String, size: &[usize], scale: f32, base: f32| {
        let numbers = (0..size.iter().product())
            .map(|_| if shape.broken { f32::NAN } else { base + random.next() * scale })
            .collect();
        tensors.insert(name, (size.to_vec(), numbers));
    };
    add("wte.weight".into(), &[vocab, d], 0.6, 0.0);
    add("wpe.weight".into(), &[shape.context, d], 0.2, 0.0);
    for n in 0..shape.layers {
        for (name, size) in [
            ("attn.c_attn", vec![d, 3 * d]),
            ("attn.c_proj", vec![d, d]),
            ("mlp.c_fc", vec![d, 4 * d]),
            ("mlp.c_proj", vec![4 * d, d]),
        ] {
            add(format!("h.{n}.{name}.weight"), &size, 2.0 / (d as f32).sqrt(), 0.0);
            add(format!("h.{n}.{name}.bias"), &size[1..], 0.1, 0.0);
        }
        for name in ["ln_1", "ln_2"] {
            add(format!("h.{n}.{name}.weight"), &[d], 0.1, 1.0);
            add(format!("h.{n}.{name}.bias"), &[d], 0.1, 0.0);
        }
    }
    add("ln_f.weight".into(), &[d], 0.1, 1.0);
    add("ln_f.bias".into(), &[d], 0.1, 0.0);
    write_tensors(folder, &tensors);
}

/// A Mixtral of random numbers, with the same tokenizer: three experts, of which each token takes two.
pub(crate) fn write_mixtral(folder: &Utf8Path) {
    write_model(folder, Shape::default());
    let config = json!({
        "model_type": "mixtral", "vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256, "num_local_experts": 3,
        "num_experts_per_tok": 2, "tie_word_embeddings": false, "eos_token_id": END, "bos_token_id": END,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut add = |stem: &str, size: &[usize]| {
        let norm = size.len() == 1;
        let number = |random: &mut Random| if norm { 1.0 + 0.1 * random.next() } else { 0.6 * random.next() };
        let numbers = (0..size.iter().product()).map(|_| number(&mut random)).collect();
        tensors.insert(format!("{stem}.weight"), (size.to_vec(), numbers));
    };
    for (stem, size) in [("model.embed_tokens", vec![259, 32]), ("model.norm", vec![32]), ("lm_head", vec![259, 32])] {
        add(stem, &size);
    }
    for layer in 0..2 {
        let at = format!("model.layers.{layer}");
        for (stem, size) in [
            ("input_layernorm", vec![32]),
            ("post_attention_layernorm", vec![32]),
            ("self_attn.q_proj", vec![32, 32]),
            ("self_attn.k_proj", vec![16, 32]),
            ("self_attn.v_proj", vec![16, 32]),
            ("self_attn.o_proj", vec![32, 32]),
            ("block_sparse_moe.gate", vec![3, 32]),
        ] {
            add(&format!("{at}.{stem}"), &size);
        }
        for expert in 0..3 {
            let at = format!("{at}.block_sparse_moe.experts.{expert}");
            add(&format!("{at}.w1"), &[48, 32]);
            add(&format!("{at}.w2"), &[32, 48]);
            add(&format!("{at}.w3"), &[48, 32]);
        }
    }
    write_tensors(folder, &tensors);
}

fn write_tensors(folder: &Utf8Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, numbers))| (name, numbers.iter().flat_map(|n| n.to_le_bytes()).collect()))
        .collect();
    let views = tensors
        .iter()
        .map(|(name, (size, _))| (name.clone(), TensorView::new(Dtype::F32, size.clone(), &bytes[name]).unwrap()));
    safetensors::serialize_to_file(views, None, folder.join("model.safetensors").as_std_path()).unwrap();
}
