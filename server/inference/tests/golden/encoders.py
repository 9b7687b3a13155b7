#!/usr/bin/env python3
"""Makes the golden files of encoders: tiny models with seeded random weights, and what `sentence-transformers` says of texts.

Needs: pip install torch transformers sentence-transformers safetensors
Run:   encoders.py        (writes beside itself)

Every model is a folder as sentence-transformers saves it, and an `expected.json` with texts, their tokens and vectors.
"""
import json
import pathlib
import shutil
import tempfile

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig, BertModel, DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel,
    XLMRobertaConfig, XLMRobertaModel,
)

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "a",
    "The harbour was quiet.",
    "  Grüße aus Zürich — 東京, 12.5 % !  ",
    "the fox walked to the river and the fox slept by the river until the sun was over the harbour",
    " ".join(["once upon a time"] * 40),
]
SPECIAL = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]}


def tokenizer(kind):
    """A tokenizer for the texts: WordPiece, byte-level BPE, or Unigram; only the trainer of the second is deterministic."""
    special = SPECIAL["bert" if kind == "wordpiece" else "roberta"]
    if kind == "wordpiece":
        letters = sorted(set("".join(TEXTS).lower()) - set(" —東京äöü"))
        pieces = [*special, *letters, *(f"##{c}" for c in letters), "the", "river", "har", "##bour", "walk", "##ed", "東"]
        t = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
        t.normalizer = normalizers.BertNormalizer(lowercase=True)
        t.pre_tokenizer, t.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        t.add_special_tokens(special)
        trainer = None
        first, last = "[CLS]", "[SEP]"
    elif kind == "bpe":
        t = Tokenizer(models.BPE())
        t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        first, last = "<s>", "</s>"
    else:
        letters = sorted(set("".join(TEXTS)) - set(" —東京äöü"))
        words = ["▁the", "▁river", "▁har", "bour", "▁walk", "ed", "▁a", "東"]
        scored = [(piece, 0.0) for piece in special] + [(c, -6.0) for c in ["▁", *letters]] + [(w, -3.0) for w in words]
        t = Tokenizer(models.Unigram(scored, unk_id=3, byte_fallback=False))
        t.normalizer = normalizers.NFKC()
        t.pre_tokenizer, t.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        t.add_special_tokens(special)
        trainer = None
        first, last = "<s>", "</s>"
    if trainer:
        t.train_from_iterator(TEXTS, trainer)
    pair = [(first, t.token_to_id(first)), (last, t.token_to_id(last))]
    t.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=pair)
    names = {"pad_token": special[0 if kind == "wordpiece" else 1], "unk_token": special[1 if kind == "wordpiece" else 3]}
    return PreTrainedTokenizerFast(tokenizer_object=t, cls_token=first, sep_token=last, mask_token=special[4], **names)


def randomise(model, seed):
    """Weights large enough that every part of the model moves the vectors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                p.copy_(1.0 + 0.3 * noise)
            elif p.dim() == 1:
                p.copy_(0.2 * noise)
            else:
                p.copy_(noise * (0.6 if "embeddings" in name else 1.4 / p.shape[-1] ** 0.5))


def write(name, model, tokens, seed, pooling, normalised, length, prompts=None, default_prompt=None):
    randomise(model, seed)
    model.eval()
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as plain:
        model.save_pretrained(plain)
        tokens.save_pretrained(plain)
        modules = [Transformer(plain, max_seq_length=length), Pooling(model.config.hidden_size, pooling_mode=pooling)]
    modules += [Normalize()] if normalised else []
    encoder = SentenceTransformer(modules=modules, device="cpu", prompts=prompts, default_prompt_name=default_prompt)
    encoder.save(str(folder), create_model_card=False)
    (folder / "model.safetensors").chmod(0o644)
    cases = []
    for prompt in [None, *(prompts or {})]:
        vectors = encoder.encode(TEXTS, prompt_name=prompt, batch_size=1, convert_to_numpy=True, normalize_embeddings=False)
        before = (prompts or {}).get(prompt or default_prompt, "")
        ids = [tokens(before + text, truncation=True, max_length=length)["input_ids"] for text in TEXTS]
        cases.append({"prompt": prompt, "tokens": ids, "vectors": [[float(f"{v:.8g}") for v in row] for row in vectors.tolist()]})
    (folder / "expected.json").write_text(json.dumps({"texts": TEXTS, "cases": cases}) + "\n")
    return folder


def older(folder):
    """The files as versions before 6 of sentence-transformers wrote them."""
    path = folder / "1_Pooling" / "config.json"
    mode = json.loads(path.read_text())["pooling_mode"]
    modes = {f"pooling_mode_{key}": mode == name for key, name in [("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", "max")]}
    path.write_text(json.dumps({"word_embedding_dimension": 36, **modes}, indent=1) + "\n")
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rsplit(".", 1)[1]
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n")
    length = json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"]
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}) + "\n")


def main():
    torch.set_num_threads(1)
    words, pieces, unigrams = tokenizer("wordpiece"), tokenizer("bpe"), tokenizer("unigram")
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    bert = BertConfig(vocab_size=len(words), max_position_embeddings=48, **common)
    prompts = {"query": "query: ", "passage": "passage: "}
    write("bert", BertModel(bert), words, 11, "mean", True, 40, prompts, "query")
    # Nothing here divides anything: width 36, heads of 12.
    odd = RobertaConfig(
        vocab_size=len(pieces), hidden_size=36, num_hidden_layers=1, num_attention_heads=3, intermediate_size=50,
        max_position_embeddings=100, type_vocab_size=1, pad_token_id=1, hidden_act="gelu_new",
    )
    older(write("roberta", RobertaModel(odd), pieces, 12, "cls", False, 96))
    xlm = XLMRobertaConfig(vocab_size=len(unigrams), max_position_embeddings=70, type_vocab_size=1, pad_token_id=1, **common)
    write("xlm-roberta", XLMRobertaModel(xlm), unigrams, 13, "mean", True, 68)
    distil = DistilBertConfig(vocab_size=len(words), dim=32, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=64, activation="relu")
    write("distilbert", DistilBertModel(distil), words, 14, "max", False, 64)


if __name__ == "__main__":
    main()
