#!/usr/bin/env python3
"""Holds the words of the product against the word list `words`: strings and doc comments of product code, help texts, templates and
documentation, and public names. `check.py [PATH…]` checks everything or some paths; `check.py --count` counts by folder.

The list holds phrases that a reader of the field has to translate ("the thing is not to be had" for "not supported") and what to
write instead. A string without a space is not checked: it is a key, a code or a path.
"""

import collections
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = Path(__file__).with_name("words")
PROSE = (".md", ".yaml", ".yml", ".sh", ".html", ".service")
# Test code, generated files, prompts, and the card of the shipped model, which is part of its digest.
SKIPPED = re.compile(
    r"(^|/)(target|tests|testdata|golden|bundled|\.git|\.textnlp|node_modules|stand-in|standin|fake|benches)/|"
    r"(^|/)(tests|test_[a-z]+)\.(rs|py)$|/training/src/(corpus/|evaluate\.rs|card\.rs)|environment\.schema\.json|licenses\.txt"
)
# One token that matters per match: comments, strings in all their forms, characters, and what may start a test module.
TOKEN = re.compile(
    r"(?P<doc>//[/!][^\n]*)|(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<raw>b?r(?P<hash>\#*)\".*?\"(?P=hash))|"
    r"(?P<string>b?\"(?:\\.|[^\"\\])*\")|(?P<char>'(?:\\.[^']*|[^'\\])')|(?P<test>\#\[cfg\(test\)\]\s*(?:pub\s+)?mod\s+\w+\s*\{)|"
    r"(?P<public>\bpub(?:\([a-z ]+\))?\s+(?:async\s+|const\s+|unsafe\s+)*(?:struct|enum|trait|type|fn|mod|const|static)\s+(?P<name>\w+))|"
    r"(?P<open>\{)|(?P<close>\})",
    re.S,
)


def read_words():
    """[(scope, pattern, what to write instead)] of the list."""
    rules = []
    for number, line in enumerate(WORDS.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("|", 2)]
        if len(parts) != 3 or parts[0] not in ("text", "name"):
            sys.exit(f"{WORDS}:{number}: a line is SCOPE | PATTERN WITH (a, b) FOR ALTERNATIVES | WHAT TO WRITE")
        scope, pattern, instead = parts
        pattern = re.sub(r"\(([^)]*)\)", lambda found: "(?:" + "|".join(re.split(r",\s*", found[1])) + ")", pattern)
        rules.append((scope, re.compile(rf"\b{pattern}\b" if scope == "text" else rf"^{pattern}$", re.I if scope == "text" else 0), instead))
    return rules


def pieces_of_rust(text):
    """Yields (scope, line, text) of product code: what a person reads, and public names."""
    depth, end_of_test, line, at = 0, None, 1, 0
    for found in TOKEN.finditer(text):
        line += text.count("\n", at, found.start())
        at = found.start()
        kind = found.lastgroup if found.lastgroup not in ("hash", "name") else ("raw" if found["raw"] else "public")
        if kind == "test" and end_of_test is None:
            end_of_test = depth
            depth += 1
        elif kind == "open" or kind == "test":
            depth += 1
        elif kind == "close":
            depth -= 1
            if depth == end_of_test:
                end_of_test = None
        elif end_of_test is not None:
            continue
        elif kind in ("string", "raw") and " " in found[0]:
            yield "text", line, found[0]
        elif kind == "doc":
            yield "text", line, found[0]
        elif kind == "public":
            yield "name", line, found["name"]


def pieces(path):
    text = path.read_text(errors="replace")
    if path.suffix == ".rs":
        yield from pieces_of_rust(text)
    else:
        for number, line in enumerate(text.splitlines(), 1):
            # Inline code quotes what a program prints or reads, a link has the name of a file, and a template's tags are code.
            code = {".md": r"`[^`]*`|\]\([^)]*\)", ".html": r"\{%.*?%\}|\{\{.*?\}\}"}.get(path.suffix)
            yield "text", number, re.sub(code, "", line) if code else line


def files(paths):
    for start in paths:
        for path in sorted(start.rglob("*")) if start.is_dir() else [start]:
            place = path.relative_to(ROOT).as_posix()
            if path.is_file() and (path.suffix == ".rs" or path.suffix in PROSE) and not SKIPPED.search(place):
                yield path, place


def main(arguments):
    rules = read_words()
    count = "--count" in arguments
    paths = [Path(word).resolve() for word in arguments if not word.startswith("-")] or [ROOT]
    found = []
    for path, place in files(paths):
        for scope, line, text in pieces(path):
            for rule, pattern, instead in rules:
                hit = rule == scope and pattern.search(text)
                if hit:
                    found.append((place, line, hit[0], instead, " ".join(text.split())[:160]))
    if count:
        folders = collections.Counter("/".join(place.split("/")[:2]) for place, *_ in found)
        for folder, number in folders.most_common():
            print(f"{number:6} {folder}")
    else:
        for place, line, word, instead, text in found:
            print(f"{place}:{line}: `{word}`: write {instead}: {text}")
    print(f"{len(found)} places to reword" if found else "the words are plain")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
