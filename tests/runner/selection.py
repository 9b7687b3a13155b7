"""Holds the features of dependencies against each other: what the README's first command builds must be what the tests build.

Cargo unifies features over everything that a command selects. A crate that only tests use, and that asks for one more feature of a
common dependency, would have half of the program built twice, and the tests would run another program than the one that ships.
"""

import subprocess
import sys
from pathlib import Path

import tiers

ROOT = Path(__file__).resolve().parents[2]


def tree(*arguments):
    """{package and version: features} of a selection."""
    done = subprocess.run(
        ["cargo", "tree", "--locked", "--prefix", "none", "-f", "{p}|{f}", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    found = {}
    for line in done.stdout.splitlines():
        package, _, features = line.removesuffix(" (*)").partition("|")
        # Host and target may have a package with other features each.
        found.setdefault(" ".join(package.split()[:2]), set()).add(features)
    return found


def main(features):
    extra = ["--features", features] if features else []
    program = tree("-p", "textnlp-deploy", "-e", "normal,build", *extra)
    selection = tree(*tiers.selection(features), "-e", "normal,build,dev", *extra)
    wrong = [
        f"{package}: {sorted(features)} for the program, {sorted(selection.get(package, []))} for the tests"
        for package, features in sorted(program.items())
        if not features <= selection.get(package, set())
    ]
    if wrong:
        print("these packages have other features in the program than in the tests, so they are built twice:", file=sys.stderr)
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(1)
    print(f"{len(program)} packages of the program have the same features in the tests")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
