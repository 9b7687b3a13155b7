#!/usr/bin/env python3
"""Makes the golden files of this folder: tiny models with seeded random weights, and what `transformers` says about them.

Needs: pip install torch transformers numpy safetensors gguf
Run:   make.py            (writes beside itself)

Every model gets a folder with `config.json` and `model.safetensors` (f32) and an `expected.json` with token ids, the
logits of some positions and greedy tokens after them, computed by transformers in f32. GGUF twins are written by
gguf-py. `rope` holds the same for the model `llama` with other rotations, each in one file with its configuration.
`blocks.gguf` holds random blocks of every block type beside the numbers that gguf-py decodes from them.
"""
import json
import pathlib
import shutil

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent


def randomise(model, seed):
    """Weights large enough that every part of the model moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            norm = any(part in name for part in ("ln_", "norm"))
            if norm and name.endswith("weight"):
                # Gemma adds the 1 itself.
                p.copy_((0.0 if "gemma" in model.config.model_type else 1.0) + 0.3 * noise)
            elif p.dim() == 1:
                p.copy_(0.2 * noise)
            else:
                p.copy_(noise * (0.6 if "wte" in name or "embed" in name else 1.4 / p.shape[-1] ** 0.5))


GREEDY = 8


def reference(model, ids, positions, stepwise=False):
    """Logits of some positions and the greedy tokens after the last, by whole passes or token by token."""

    def run(ids):
        with torch.no_grad():
            if not stepwise:
                return model(torch.tensor([ids]), use_cache=False).logits[0]
            cache, rows = None, []
            for token in ids:
                out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                rows.append(out.logits[0, 0])
            return torch.stack(rows)

    whole, greedy = run(ids), []
    rows = [[float(f"{v:.8g}") for v in whole[p].tolist()] for p in positions]
    for _ in range(GREEDY):
        logits = run(ids + greedy)
        greedy.append(int(logits[-1].argmax()))
    return {"tokens": ids, "positions": positions, "logits": rows, "greedy": greedy}


def plain(config):
    return {k: v for k, v in config.items() if v is not None and k not in ("transformers_version", "_name_or_path")}


def write(name, model, tokens, seed):
    randomise(model, seed)
    model.eval()
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = model.config.to_dict()
    (folder / "config.json").write_text(json.dumps(plain(config), indent=1, sort_keys=True) + "\n")
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        state.pop("lm_head.weight", None)
    state = {k: v for k, v in state.items() if not k.endswith((".attn.bias", ".attn.masked_bias"))}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    ids = np.random.default_rng(seed).integers(0, config["vocab_size"], tokens).tolist()
    # The first and last positions, and those around the end of a block of 32.
    positions = sorted({0, 1, tokens // 2, *(p for p in (31, 32, 64) if p < tokens), tokens - 1})
    (folder / "expected.json").write_text(json.dumps(reference(model, ids, positions)) + "\n")
    return config, state


GPT2_TO_GGUF = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}
LLAMA_TO_GGUF = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}
AFTER_TO_GGUF = {
    **LLAMA_TO_GGUF, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name, table):
    name = name.removeprefix("transformer.").removeprefix("model.")
    parts = name.split(".")
    layer = parts[1] if parts[0] in ("h", "layers") else None
    stem, ending = ".".join(parts[2:-1] if layer else parts[:-1]), parts[-1]
    return (f"blk.{layer}." if layer else "") + table[stem] + "." + ending


def interleave(weight, heads):
    """Llama's rows of queries and keys as GGUF has them: neighbours are rotated."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def twin(name, config, state, kind):
    """The same model as a GGUF file, matrices in another type."""
    family = config["model_type"]
    llama = family != "gpt2"
    w = gguf.GGUFWriter(HERE / f"{name}-{kind}.gguf", {"gemma3_text": "gemma3"}.get(family, family))
    heads = config["num_attention_heads"] if llama else config["n_head"]
    if llama:
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        rope = config["rope_parameters"]
        rope = rope.get("full_attention", rope)
        if family != "llama":
            w.add_key_length(head_dim)
            w.add_value_length(head_dim)
        if config.get("sliding_window"):
            w.add_sliding_window(config["sliding_window"])
        if family == "gemma3_text":
            w.add_sliding_window_pattern(2)
        if config.get("attn_logit_softcapping"):
            w.add_attn_logit_softcapping(config["attn_logit_softcapping"])
            w.add_final_logit_softcapping(config["final_logit_softcapping"])
        if rope["rope_type"] == "longrope":
            w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            w.add_rope_scaling_attn_factors(rope["attention_factor"])
            for length in ("short", "long"):
                values = np.array(rope[f"{length}_factor"], dtype=np.float32)
                w.add_tensor(f"rope_factors_{length}.weight", values)
        w.add_context_length(config["max_position_embeddings"])
        w.add_embedding_length(config["hidden_size"])
        w.add_block_count(config["num_hidden_layers"])
        w.add_feed_forward_length(config["intermediate_size"])
        w.add_head_count(heads)
        w.add_head_count_kv(config["num_key_value_heads"])
        w.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
        w.add_rope_freq_base(rope["rope_theta"])
        if "norm_epsilon" in config:
            w.add_layer_norm_eps(config["norm_epsilon"])
        else:
            w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        w.add_context_length(config["n_positions"])
        w.add_embedding_length(config["n_embd"])
        w.add_block_count(config["n_layer"])
        w.add_feed_forward_length(4 * config["n_embd"])
        w.add_head_count(heads)
        w.add_layer_norm_eps(config["layer_norm_epsilon"])
    vocab = config["vocab_size"]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(["<|endoftext|>", *(f"token{i}" for i in range(1, vocab))])
    w.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (vocab - 1))
    w.add_token_merges(["t o", "to k"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    w.add_add_bos_token(False)
    w.add_chat_template("{{ messages }}")
    table = LLAMA_TO_GGUF if llama else GPT2_TO_GGUF
    if family in ("gemma2", "gemma3_text", "olmo2"):
        table = AFTER_TO_GGUF
    for theirs, tensor in state.items():
        ours, values = gguf_name(theirs, table), tensor.numpy()
        if not llama and ours.startswith("blk.") and values.ndim == 2:
            values = values.T
        if family == "llama" and ".attn_q." in ours:
            values = interleave(values, heads)
        if family == "llama" and ".attn_k." in ours:
            values = interleave(values, config["num_key_value_heads"])
        if "gemma" in family and "norm" in ours:
            values = values + 1
        values = np.ascontiguousarray(values)
        if values.ndim == 1 or ours.startswith("position"):
            w.add_tensor(ours, values)
        else:
            dtype = gguf.GGMLQuantizationType[kind.upper()]
            w.add_tensor(ours, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def blocks():
    """Random blocks of each type with sane scales, and what they decode to."""
    rng = np.random.default_rng(7)
    w = gguf.GGUFWriter(HERE / "blocks.gguf", "blocks")
    # Where each type keeps its f16 scales and minima.
    scales = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q2_K": [80, 82], "Q3_K": [108], "IQ4_NL": [0], "IQ4_XS": [0]}
    for name, places in scales.items():
        dtype = gguf.GGMLQuantizationType[name]
        numbers, size = gguf.GGML_QUANT_SIZES[dtype]
        rows, per_row = 2, 512 // numbers
        raw = rng.integers(0, 256, (rows * per_row, size), dtype=np.uint8)
        for place in places:
            values = rng.uniform(0.001, 0.1, rows * per_row).astype(np.float16)
            raw[:, place : place + 2] = values.view(np.uint8).reshape(-1, 2)
        raw = raw.reshape(rows, per_row * size)
        w.add_tensor(name.lower(), raw, raw_dtype=dtype)
        w.add_tensor(name.lower() + ".expected", gguf.quants.dequantize(raw, dtype).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def family(name, number, kind, model_type, tokens=70, **changes):
    """A small model of a family, and its twin in GGUF."""
    usual = {
        "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96, "tie_word_embeddings": False,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }
    config = getattr(transformers, f"{model_type}Config")(**{k: v for k, v in {**usual, **changes}.items() if v is not None})
    config._attn_implementation = "eager"
    stem = model_type.removesuffix("Text")
    config, state = write(name, getattr(transformers, f"{stem}ForCausalLM")(config), tokens, number)
    if kind:
        twin(name, config, state, kind)


def families():
    # Windows shorter than a block and not a divisor of anything; caps low enough to matter.
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}
    gemma = {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}
    family("mistral", 11, None, "Mistral", sliding_window=21)
    family("qwen2", 12, "f16", "Qwen2", head_dim=None, hidden_size=32)
    family("qwen3", 13, "f16", "Qwen3")
    family("qwen3-window", 14, None, "Qwen3", use_sliding_window=True, sliding_window=5, max_window_layers=1)
    family("gemma", 15, "f16", "Gemma", **gemma)
    family("gemma2", 16, "f16", "Gemma2", sliding_window=21, **gemma, **caps)
    two = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 21, "query_pre_attn_scalar": 8}
    family("gemma3", 17, "f16", "Gemma3Text", **gemma, **two)
    family("phi3", 18, "f16", "Phi3", head_dim=None, hidden_size=32, sliding_window=30)
    # 3 of 4 dimensions are rotated.
    factors = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.0, 2.5, 4.0]}
    longrope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "attention_factor": 1.1}
    longrope.update(factors, original_max_position_embeddings=48)
    family("phi3-long", 19, "f16", "Phi3", head_dim=None, hidden_size=32, rope_parameters=longrope)
    family("olmo2", 20, "f16", "Olmo2", head_dim=None, hidden_size=32)
    family("starcoder2", 21, "f16", "Starcoder2", head_dim=None, hidden_size=32, sliding_window=40)


def rotations(config, state):
    """What other rotations make of the model `llama`."""
    folder = HERE / "rope"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    long = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.5, 3.0, 4.0]}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    kinds = {
        "linear": {"rope_type": "linear", "factor": 3.0},
        "linear-one": {"rope_type": "linear", "factor": 1.0},
        "dynamic": {"rope_type": "dynamic", "factor": 3.0},
        "llama3": {"rope_type": "llama3", "factor": 8.0, **llama3},
        "yarn": yarn,
        "yarn-mscale": {**yarn, "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 16.0, "beta_slow": 0.5},
        "yarn-attention": {**yarn, "attention_factor": 0.9, "truncate": False},
        "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 24, **long},
        "longrope-short": {"rope_type": "longrope", "original_max_position_embeddings": 48, **long},
    }
    for name, rope in kinds.items():
        changed = {**plain(config), "rope_parameters": {"rope_theta": 5000.0, **rope}}
        tokens = 70
        if name == "dynamic":
            changed["max_position_embeddings"] = 32
        if name == "longrope-short":
            tokens = 30
        model = LlamaForCausalLM(LlamaConfig(**changed))
        model.load_state_dict(state)
        model.eval()
        ids = np.random.default_rng(5).integers(0, config["vocab_size"], tokens).tolist()
        positions = sorted({0, 1, 29, tokens - 1})
        expected = reference(model, ids, positions, stepwise=name == "dynamic")
        if name == "longrope-short":
            expected["context"] = 48
        (folder / f"{name}.json").write_text(json.dumps({"config": changed, **expected}) + "\n")


def main():
    torch.set_num_threads(1)
    gpt2 = GPT2Config(vocab_size=97, n_positions=80, n_embd=32, n_layer=2, n_head=2)
    config, state = write("gpt2", GPT2LMHeadModel(gpt2), 70, 1)
    for kind in ("f16", "q4_0"):
        twin("gpt2", config, state, kind)
    # Nothing here divides anything: width 36, heads of 12, an odd vocabulary.
    odd = GPT2Config(vocab_size=101, n_positions=24, n_embd=36, n_layer=1, n_head=3, n_inner=50)
    write("gpt2-odd", GPT2LMHeadModel(odd), 12, 2)
    grouped = LlamaConfig(
        vocab_size=89, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, rms_norm_eps=1e-5, rope_theta=5000.0, tie_word_embeddings=False,
    )
    config, state = write("llama", LlamaForCausalLM(grouped), 70, 3)
    for kind in ("q8_0", "q5_0"):
        twin("llama", config, state, kind)
    rotations(config, state)
    families()
    tied = LlamaConfig(
        vocab_size=61, hidden_size=48, intermediate_size=40, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=1, max_position_embeddings=32, rms_norm_eps=1e-6, tie_word_embeddings=True,
    )
    write("llama-tied", LlamaForCausalLM(tied), 20, 4)
    blocks()


if __name__ == "__main__":
    main()
