"""Reads what llvm-cov says about the lines of the product, writes the report, and fails below the goal in `tests/coverage.toml`.

`covered.py LLVM_COV PLACE OUT`: PLACE has `messages.json` of cargo and `all.profdata`, and OUT gets `summary.md` and `lines.info`.
"""

import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

from runner import ROOT, binaries, test_programs

PRODUCT = ("base", "bundles", "cli", "orchestrator", "providers", "server")
# Files of a crate that no user runs.
OTHER = ("tests", "benches", "examples", "tests.rs", "build.rs")
# How many files of each report are named.
NAMED = 25


def is_product(path):
    """Whether a file, relative to the root, is compiled into the product."""
    parts = Path(path).parts
    return parts[0] in PRODUCT and not any(part in OTHER for part in parts)


def lines_of_tests(source):
    """The numbers of the lines of items that are compiled for unit tests only. rustfmt puts the end of an item below its begin."""
    lines = source.splitlines()
    found, at = set(), 0
    while at < len(lines):
        begin = at
        at += 1
        if lines[begin].strip() != "#[cfg(test)]":
            continue
        indent = lines[begin][:len(lines[begin]) - len(lines[begin].lstrip())]
        ends = (f"{indent}}}", f"{indent}}};")
        while at < len(lines) and lines[at] not in ends and not (lines[at].endswith(";") and lines[at].startswith(indent)
                                                                and not lines[at].startswith(indent + " ")):
            at += 1
        at += 1
        found.update(range(begin + 1, at + 1))
    return found


def read_lcov(text):
    """How often each line ran: {path: {line: count}}."""
    found, of_file = {}, None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "SF":
            of_file = found.setdefault(value, {})
        elif name == "DA":
            number, count = value.split(",")[:2]
            of_file[int(number)] = max(of_file.get(int(number), 0), int(count))
    return found


def of_product(counts, root):
    """The counts of the product's lines, by the path relative to `root`."""
    found = {}
    for path, lines in counts.items():
        path = Path(path)
        if not path.is_relative_to(root) or not is_product(path.relative_to(root)):
            continue
        left_out = lines_of_tests(path.read_text())
        kept = {number: count for number, count in lines.items() if number not in left_out}
        if kept:
            found[str(path.relative_to(root))] = kept
    return found


def package(path, root):
    """The folder of the crate that a file belongs to."""
    folder = Path(path).parent
    while folder != Path(".") and not (root / folder / "Cargo.toml").exists():
        folder = folder.parent
    return str(folder)


def share(run, all_lines):
    """In per cent, rounded down: 79.96 does not reach 80."""
    return int(1000 * run / all_lines) / 10 if all_lines else 100.0


def summary(counts, root, goal):
    """The report in Markdown, and whether the goal is reached."""
    of_package, of_file = defaultdict(lambda: [0, 0]), {}
    for path, lines in counts.items():
        run = sum(count > 0 for count in lines.values())
        of_file[path] = (run, len(lines))
        for name in (package(path, root), ""):
            of_package[name][0] += run
            of_package[name][1] += len(lines)
    run, all_lines = of_package.pop("", (0, 0))
    text = [f"Tests run {share(run, all_lines)} % of the product's lines ({run:,} of {all_lines:,}); the goal is {goal} %.", "",
            "| crate | lines | run | share |", "|---|---:|---:|---:|"]
    text += [f"| {name} | {lines:,} | {hit:,} | {share(hit, lines)} % |" for name, (hit, lines) in sorted(of_package.items())]
    text += ["", "Files with most lines that no test runs:", "", "| file | not run | lines |", "|---|---:|---:|"]
    worst = sorted(of_file.items(), key=lambda file: (file[1][0] - file[1][1], file[0]))[:NAMED]
    text += [f"| {path} | {lines - hit:,} | {lines:,} |" for path, (hit, lines) in worst if lines > hit]
    return "\n".join(text) + "\n", all_lines > 0 and 100 * run >= goal * all_lines


def lcov(counts):
    text = []
    for path, lines in sorted(counts.items()):
        text += [f"SF:{path}", *(f"DA:{number},{count}" for number, count in sorted(lines.items())),
                 f"LF:{len(lines)}", f"LH:{sum(count > 0 for count in lines.values())}", "end_of_record"]
    return "\n".join(text) + "\n"


def main(llvm_cov, place, out):
    place, out = Path(place), Path(out)
    messages = (place / "messages.json").read_text()
    objects = sorted({*binaries(messages), *(executable for executable, _ in test_programs(messages).values())})
    exported = subprocess.run([llvm_cov, "export", "--format=lcov", "--skip-functions", f"--instr-profile={place / 'all.profdata'}",
                               objects[0], *(f"--object={path}" for path in objects[1:])],
                              stdout=subprocess.PIPE, text=True, check=True).stdout
    counts = of_product(read_lcov(exported), ROOT)
    goal = tomllib.loads((ROOT / "tests/coverage.toml").read_text())["lines"]
    text, is_reached = summary(counts, ROOT, goal)
    (out / "summary.md").write_text(text)
    (out / "lines.info").write_text(lcov(counts))
    print(text)
    return 0 if is_reached else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
