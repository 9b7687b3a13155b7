#!/usr/bin/env python3
"""Makes `words.json` and `pieces.json`: how other libraries split texts for the tokenizers that GGUF files carry.

Needs: pip install tokenizers sentencepiece
Run:   make_text.py       (writes beside itself)

`words.json`: where the words of a text end, in bytes, for each name of `tokenizer.ggml.pre`, by Python's `tokenizers`. It
is given the steps of such a family's `tokenizer.json` where they are not patterns, else llama.cpp's spelling of the
patterns, which is another than ours. `pieces.json`: two small vocabularies trained by `sentencepiece`, as a converter
puts them into GGUF, and its ids for some texts.
"""
import io
import json
import pathlib

import sentencepiece
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, Punctuation, Sequence, Split

HERE = pathlib.Path(__file__).parent

TEXT = (
    "It's 1234567 o'clock, we'LL see:\n\n  3,141.59 (fünf) six's\tseven;\r\nTokyo tower — 12.5%\n\n\n    end   of\u00a0it "
    "$5+6<=7 ^x|y~`z` a1B_c==d CamelCaseWord HTTPServer don'T 'RE <sentinel:12> IMGIMGABZ foo.bar/baz\n/ \\[x] "
    "漢字かなカナ 한국어 हिन्दी ภาษาไทย עברית e\u0301 ½ ٣٤ ……。 ！ “q” \u3000x ¿qué?  \t \n tail  "
)

CONTRACTED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+SUFFIX|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*SUFFIX|DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = [ByteLevel(add_prefix_space=False, use_regex=True)]
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = [Digits(individual_digits=True), *GPT2]
LLAMA3 = CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST
QWEN2 = CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST
QWEN35 = CONTRACTED + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = CASED.replace("SUFFIX", CONTRACTED + "?").replace("DIGITS", r"\p{N}{1,3}")
TEKKEN = CASED.replace("SUFFIX", "").replace("DIGITS", r"\p{N}")
YOUTU = CASED.replace("SUFFIX", CONTRACTED + "?").replace("DIGITS", r"\p{N}")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
SIGNS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = r"[一-龥ࠀ-一가-\x{D7FF}]+"
CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"

RULES = {
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat a.x-4.0 mellum "
    "modern-bert exaone4 mpt olmo jais trillion granite-docling": GPT2,
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": DIGITS,
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4 chatglm-bpe": [LLAMA3],
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": [QWEN2],
    "qwen35": [QWEN35],
    "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m": [GPT4O],
    "tekken": [TEKKEN],
    "tiny_aya cohere2moe": [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    "falcon": [Punctuation("contiguous"), *GPT2, r"[0-9][0-9][0-9]"],
    # Its own list of letters is that of cased ones.
    "deepseek-llm": [
        r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK, Digits(individual_digits=False)
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, Digits(individual_digits=True)],
    "deepseek-v3 hunyuan-dense joyai-llm": [r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", SIGNS],
    "youtu": [r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", YOUTU],
    "poro-chat bloom gpt3-finnish": [BLOOM],
    "viking": [BLOOM, Digits(individual_digits=True)],
    "chameleon": [
        r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", Digits(individual_digits=True),
        Punctuation("isolated"), *GPT2,
    ],
    "jais-2": [CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + CASCADE],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "bailingmoe bailingmoe2 llada-moe": [
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|"
        r"\s+(?!\S)|\s+"
    ],
    "seed-coder": [CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "laguna": [r"[^\n]+|[\n]+", QWEN2],
    "exaone-moe": [
        CONTRACTED + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|"
        r"\s+(?!\S)|\s+"
    ],
    "minicpm5": [r"\p{N}{1,3}", CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|" + REST],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]"],
}


def words():
    ends = {}
    for names, steps in RULES.items():
        steps = [Split(Regex(s), "isolated") if isinstance(s, str) else s for s in steps]
        if not any(isinstance(s, ByteLevel) for s in steps):
            steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
        found = Sequence(steps).pre_tokenize_str(TEXT)
        of_rule = [len(TEXT[:end].encode()) for _, (_, end) in found]
        for name in names.split():
            ends[name] = of_rule
    (HERE / "words.json").write_text(json.dumps({"text": TEXT, "ends": ends}, ensure_ascii=False) + "\n")


def pieces():
    """Llama's way (a space before the text) and Gemma's (none, and runs of spaces that a user defined)."""
    lines = [line for line in (HERE / "make_text.py").read_text().splitlines() if line.strip()] + TEXT.split()
    texts = [TEXT, "", " ", "a", "  two", "<s>", "x <b>y</b>  z", "\n\n", "\u00e9\U0001f600\u0000 tail ", "return self.result"]
    out = {}
    for name, prefix, defined in (("llama", True, []), ("gemma", False, ["<b>", "</b>", "\u2581\u2581"])):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=700, byte_fallback=True,
            character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=prefix, user_defined_symbols=defined, num_threads=1, minloglevel=2,
        )
        sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        size = sp.get_piece_size()
        kinds = []
        for i in range(size):
            kind = 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
            kinds.append(4 if sp.id_to_piece(i) in defined else kind)
        tokens = [sp.id_to_piece(i) for i in range(size)]
        # Converters write what a user defined with spaces.
        tokens = [t.replace("\u2581", " ") if kind == 4 else t for t, kind in zip(tokens, kinds)]
        scores = [sp.get_score(i) for i in range(size)]
        # The processor does not look for control tokens in a text; ours does.
        encoded = [[text, sp.encode(text)] for text in texts if "<s>" not in text]
        out[name] = {"tokens": tokens, "scores": scores, "types": kinds, "prefix": prefix, "encoded": encoded}
    (HERE / "pieces.json").write_text(json.dumps(out, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    words()
    pieces()
