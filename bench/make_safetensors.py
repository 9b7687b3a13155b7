#!/usr/bin/env python3
"""Writes a model folder in the shape of a known model with seeded noise as weights in bf16.

Speed does not depend on the values, so this is enough for a race; answers mean nothing.
Needs: pip install torch safetensors

  make_safetensors.py llama-3.2-1b /tmp/llama-3.2-1b
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file

# layers, width, heads, key heads, feed-forward, vocabulary, tied head
SHAPES = {
    "llama-3.2-1b": (16, 2048, 32, 8, 8192, 128256, True),
    "llama-3.1-8b": (32, 4096, 32, 8, 14336, 128256, False),
}


def main(shape, folder):
    layers, width, heads, key_heads, ffn, vocab, tied = SHAPES[shape]
    kv = width // heads * key_heads
    noise = torch.Generator().manual_seed(1)

    def matrix(outputs, inputs):
        return (torch.randn(outputs, inputs, generator=noise) * inputs**-0.5).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": matrix(vocab, width), "model.norm.weight": torch.ones(width, dtype=torch.bfloat16)}
    if not tied:
        tensors["lm_head.weight"] = matrix(vocab, width)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for stem in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{stem}.weight"] = torch.ones(width, dtype=torch.bfloat16)
        for stem, outputs, inputs in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", kv, width),
            ("self_attn.v_proj", kv, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", ffn, width),
            ("mlp.up_proj", ffn, width),
            ("mlp.down_proj", width, ffn),
        ):
            tensors[f"{at}{stem}.weight"] = matrix(outputs, inputs)
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, os.path.join(folder, "model.safetensors"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": ffn,
        "max_position_embeddings": 8192,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": key_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
    }
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)


main(*sys.argv[1:])
