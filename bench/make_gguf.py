#!/usr/bin/env python3
"""Writes a GGUF file in the shape of a known model with seeded noise as weights, matrices in any type.
Types of K blocks and IQ types have random bits. Those with blocks of 256 need a width and a feed-forward that are multiples.

Speed does not depend on the values, so this is enough for a race; answers mean nothing.
Needs: pip install gguf numpy

  make_gguf.py smollm2-135m q8_0 /tmp/smollm2-135m-q8_0.gguf
"""
import sys

import gguf
import numpy as np

# layers, width, heads, key heads, feed-forward, vocabulary, context, base of the rotations (None: GPT-2), tied head
SHAPES = {
    "smollm2-135m": (30, 576, 9, 3, 1536, 49152, 8192, 100000.0, True),
    "tinyllama-1.1b": (22, 2048, 32, 4, 5632, 32000, 2048, 10000.0, False),
    "llama-3.2-1b": (16, 2048, 32, 8, 8192, 128256, 8192, 500000.0, True),
    "gpt2-124m": (12, 768, 12, 12, 3072, 50257, 1024, None, True),
}


# Where the types that gguf-py cannot make keep their f16 scales and minima.
HALVES = {"q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "iq4_nl": [0], "iq4_xs": [0]}


def random_blocks(noise, dtype, outputs, inputs):
    numbers, size = gguf.GGML_QUANT_SIZES[dtype]
    raw = noise.integers(0, 256, (outputs * inputs // numbers, size), dtype=np.uint8)
    for place in HALVES[dtype.name.lower()]:
        raw[:, place : place + 2] = np.full((len(raw), 1), 1e-4, np.float16).view(np.uint8)
    return raw.reshape(outputs, inputs // numbers * size)


def main(shape, kind, path):
    layers, width, heads, key_heads, ffn, vocab, context, theta, tied = SHAPES[shape]
    kv = width // heads * key_heads
    dtype = gguf.GGMLQuantizationType[kind.upper()]
    noise = np.random.default_rng(1)
    w = gguf.GGUFWriter(path, "llama" if theta else "gpt2")
    w.add_context_length(context)
    w.add_embedding_length(width)
    w.add_block_count(layers)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    if theta:
        w.add_head_count_kv(key_heads)
        w.add_rope_dimension_count(width // heads)
        w.add_rope_freq_base(theta)
        w.add_layer_norm_rms_eps(1e-5)
    else:
        w.add_layer_norm_eps(1e-5)
    # A vocabulary of plain words: loaders want one, nobody reads it.
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([f"w{i}" for i in range(vocab)])
    w.add_token_merges(["w 0", "w 1"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)

    def matrix(name, outputs, inputs):
        if kind in HALVES:
            w.add_tensor(name + ".weight", random_blocks(noise, dtype, outputs, inputs), raw_dtype=dtype)
        else:
            values = noise.standard_normal((outputs, inputs), dtype=np.float32) * 0.02
            w.add_tensor(name + ".weight", gguf.quants.quantize(values, dtype), raw_dtype=dtype)
        if not theta and name.startswith("blk"):
            w.add_tensor(name + ".bias", np.zeros(outputs, np.float32))

    def norm(name):
        w.add_tensor(name + ".weight", np.ones(width, np.float32))
        if not theta:
            w.add_tensor(name + ".bias", np.zeros(width, np.float32))

    matrix("token_embd", vocab, width)
    if not theta:
        w.add_tensor("position_embd.weight", noise.standard_normal((context, width), dtype=np.float32) * np.float32(0.02))
    for i in range(layers):
        b = f"blk.{i}."
        norm(b + "attn_norm")
        if theta:
            matrix(b + "attn_q", width, width)
            matrix(b + "attn_k", kv, width)
            matrix(b + "attn_v", kv, width)
            matrix(b + "ffn_gate", ffn, width)
        else:
            matrix(b + "attn_qkv", 3 * width, width)
        matrix(b + "attn_output", width, width)
        norm(b + "ffn_norm")
        matrix(b + "ffn_up", ffn, width)
        matrix(b + "ffn_down", width, ffn)
    norm("output_norm")
    if not tied:
        matrix("output", vocab, width)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in SHAPES:
        sys.exit(f"{__doc__}\nshapes: {', '.join(SHAPES)}")
    main(*sys.argv[1:])
