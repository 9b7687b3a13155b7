#!/usr/bin/env python3
"""Measures transformers on a GPU with a folder from make_safetensors.py, as `textnlp-bench FOLDER --gpu 0` measures this engine.
Needs: pip install torch transformers

  transformers_peer.py /tmp/llama-3.2-1b --batch 32
"""
import argparse
import time

import torch
from transformers import LlamaForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--prompt", type=int, default=128)
parser.add_argument("--generate", type=int, default=128)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--batch", type=int, default=8)
args = parser.parse_args()

model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).to("cuda").eval()
ids = [(300 + i * 7919) % 20000 % model.config.vocab_size for i in range(args.prompt)]


def seconds(batch, count):
    prompt = torch.tensor([ids] * batch, device="cuda")
    torch.cuda.synchronize()
    started = time.time()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0)
    torch.cuda.synchronize()
    return time.time() - started


with torch.inference_mode():
    for batch in dict.fromkeys((1, args.batch)):
        seconds(batch, args.generate)
        first = sorted(seconds(batch, 1) for _ in range(args.rounds))[args.rounds // 2]
        whole = sorted(seconds(batch, args.generate + 1) for _ in range(args.rounds))[args.rounds // 2]
        decode = batch * args.generate / (whole - first)
        print(f"transformers, {batch} sequences: prefill {batch * args.prompt / first:.1f} tok/s, decode {decode:.1f} tok/s")
