#!/usr/bin/env python3
"""Makes the golden files of this folder: tiny models with seeded random weights, and what `transformers` says about them.

Needs: pip install torch transformers numpy safetensors
Run:   make.py            (writes beside itself)

Every family gets a folder with what `save_pretrained` writes in f32, and an `expected.json` with token ids, the logits of some
positions and the next tokens that greedy decoding takes, computed by transformers in f32. Windows and context are short, so
that they matter. Three folders hold the same model as another: in f16, in bf16 and in several files with an index.
"""
import json
import pathlib
import shutil

import numpy as np
import torch
import transformers as t
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
# The sizes that all have in common. Nothing divides anything but what must.
SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SMALL | {"intermediate_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
NEO = {
    "vocab_size": 61, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1]], "window_size": 5,
}
FALCON = SMALL | {"max_position_embeddings": 64}

MODELS = {
    "gpt2": t.GPT2Config(**GPT),
    "gptj": t.GPTJConfig(**GPT, rotary_dim=4),
    "gpt_neo": t.GPTNeoConfig(**NEO),
    "gpt_neox": t.GPTNeoXConfig(**SMALL, intermediate_size=40, max_position_embeddings=64, rotary_pct=0.34),
    "gpt_neox-sequential": t.GPTNeoXConfig(
        **SMALL, intermediate_size=40, max_position_embeddings=64, rotary_pct=1.0, use_parallel_residual=False
    ),
    "falcon-multi-query": t.FalconConfig(**FALCON),
    "falcon-groups": t.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-one-norm": t.FalconConfig(
        **FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "falcon-alibi": t.FalconConfig(
        **FALCON | {"num_attention_heads": 6}, multi_query=False, parallel_attn=False, alibi=True, bias=True
    ),
    "opt": t.OPTConfig(**SMALL, ffn_dim=40, max_position_embeddings=64, word_embed_proj_dim=24),
    "phi": t.PhiConfig(**SMALL, intermediate_size=40, max_position_embeddings=64, partial_rotary_factor=0.4),
    "phi3": t.Phi3Config(**LLAMA, pad_token_id=0, sliding_window=7),
    "starcoder2": t.Starcoder2Config(**LLAMA, sliding_window=6),
    "stablelm": t.StableLmConfig(**LLAMA, use_qkv_bias=True, partial_rotary_factor=0.67),
    "olmo": t.OlmoConfig(**LLAMA, clip_qkv=0.6),
    "olmo2": t.Olmo2Config(**LLAMA),
    "mixtral": t.MixtralConfig(**LLAMA, num_local_experts=5, num_experts_per_tok=2),
    "mistral": t.MistralConfig(**LLAMA, head_dim=10, sliding_window=9),
    "llama": t.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "qwen2": t.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "qwen3": t.Qwen3Config(**LLAMA, head_dim=8),
}


def randomise(model, seed):
    """Weights large enough that every part of the model moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            norm = any(part in name for part in ("ln_", "norm", "layernorm"))
            if norm and name.endswith("weight"):
                p.copy_(1.0 + 0.3 * noise)
            elif p.dim() == 1:
                p.copy_(0.2 * noise)
            else:
                table = any(part in name for part in ("wte", "wpe", "embed"))
                p.copy_(noise * (0.6 if table else 1.4 / p.shape[-1] ** 0.5))


def slim(folder):
    """Only keys that decide something: a default that transformers does not write is one that we must know."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("transformers_version", "architectures", "_name_or_path", "use_cache", "initializer_range"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)


def expected(model, seed):
    tokens = 33
    ids = np.random.default_rng(seed).integers(3, model.config.vocab_size, tokens).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
        positions = [0, 1, 8, tokens - 1]
        rows = [[float(f"{v:.8g}") for v in logits[p].tolist()] for p in positions]
        # Without a cache of keys and values: what it would be is what is tested.
        text = list(ids)
        for _ in range(12):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return {"tokens": ids, "positions": positions, "logits": rows, "greedy": text[tokens:]}


def write(name, model, answer, **saving):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, **saving)
    slim(folder)
    if name == "gptj":
        # As the checkpoints on the hub do, it carries causal masks along.
        state = load_file(folder / "model.safetensors")
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e9)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "expected.json").write_text(json.dumps(answer) + "\n")


def rounded(name, source, dtype):
    """The same weights in another type, and what they say when computed in f32."""
    model = t.AutoModelForCausalLM.from_pretrained(HERE / source, dtype=dtype)
    write(name, model, {})
    exact = t.AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager")
    (HERE / name / "expected.json").write_text(json.dumps(expected(exact.eval(), 99)) + "\n")


def main():
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(MODELS.items(), 1):
        # Eager attention of transformers 5.23 adds Falcon's linear biases twice.
        config._attn_implementation = "sdpa" if name == "falcon-alibi" else "eager"
        model = t.AutoModelForCausalLM.from_config(config).float().eval()
        randomise(model, seed)
        answer = expected(model, seed)
        write(name, model, answer)
        if name == "mixtral":
            write("mixtral-shards", model, answer, max_shard_size="40KB")
    rounded("gptj-f16", "gptj", torch.float16)
    rounded("gpt_neox-bf16", "gpt_neox", torch.bfloat16)


if __name__ == "__main__":
    main()
