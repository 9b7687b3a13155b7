"""Tiers: tests and checks that are skipped while nothing that they cover has changed since they passed.

The key of a tier is a digest of the files below its paths as git has them, of the packages and versions that its crates are built
of, of the compiler and of its own definition. A tier is green if its key is known: this machine's cache has the keys of what passed
here, `tests/evidence/tiers.json` those that somebody recorded with `tiers.py record`. A work tree with changes that are not
committed skips nothing, each run repeats one of the green tiers, and what was skipped is printed.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path.home() / ".cache/textnlp-deploy/tiers"
EVIDENCE = ROOT / "tests/evidence/tiers.json"
# Crates that are built for everything but their own tier: candle and gemm would change the features of 60 others.
APART = ("textnlp-training", "textnlp-bench")
# Crates that need the SDKs of clouds: only where the program is built with clouds too.
OF_CLOUDS = ("textnlp-aws", "textnlp-azure", "textnlp-gcp", "textnlp-gcs", "textnlp-sim")
# The same for the executor that needs candle.
OF_CANDLE = ("textnlp-candle",)
OF_FEATURES = {"clouds": OF_CLOUDS, "candle": OF_CANDLE}


def facts(features):
    """Which of the program's features that have crates of their own it is built with."""
    return {feature: any(name.endswith("/" + feature) for name in features.split(",")) for feature in OF_FEATURES}


def left_out(features):
    """The crates of features that the program is built without."""
    return tuple(name for feature, built in facts(features).items() if not built for name in OF_FEATURES[feature])


def selection(features):
    """The crates that are built together."""
    apart = APART + left_out(features)
    return ("--workspace", *(word for name in apart for word in ("--exclude", name)))


ADVISORIES = "../shared/advisory-db"


@dataclass(frozen=True)
class Tier:
    """`command` is run for the tier itself, where `--ci` or `--all` asks for it; rows of the plan may belong to a tier as well."""

    name: str
    about: str
    paths: tuple
    packages: tuple = ()
    command: str = ""


TIERS = {
    tier.name: tier
    for tier in (
        Tier(
            "training",
            "the trainer, its gradients against candle's, and the benchmarks compile",
            ("server/training", "server/inference", "server/models", "bench", "Cargo.toml"),
            APART,
            "cargo clippy --release --locked -p textnlp-training -p textnlp-bench --all-targets -- -D warnings && "
            "cargo test --release --locked -p textnlp-training",
        ),
        Tier(
            "licenses",
            "bans, licenses and sources of dependencies",
            ("Cargo.lock", "deny.toml", ".ci/licenses", ".ci/tool"),
            (),
            "bash .ci/licenses",
        ),
        Tier(
            "advisories",
            "known vulnerabilities of dependencies, and our scanner beside cargo-audit",
            ("Cargo.lock", "bundles/src/scan", "cli/evidence", ".ci/advisories", ".ci/audit", ".ci/tool", ADVISORIES),
            ("textnlp-bundle",),
            "bash .ci/advisories",
        ),
        Tier(
            "exhaustive",
            "lists that the other runs sample: a rollout lost at every change, a call cut anywhere, a host killed anywhere",
            ("providers/contract", "providers/kubernetes", "orchestrator", "tests/cluster", "tests/tests/cluster", "templates/kubernetes"),
            ("textnlp-kubernetes", "textnlp-orchestrator", "textnlp-tests"),
        ),
    )
}


def git(*arguments):
    """What git prints, or None outside of a repository."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


@cache
def is_clean():
    """Whether this is a git work tree without changes."""
    return git("status", "--porcelain") == ""


@cache
def commit():
    """The commit as a number; 0 outside of git."""
    return int((git("rev-parse", "HEAD") or "0").strip(), 16)


@cache
def compiler():
    return subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout


@cache
def packages(name):
    """The packages, versions and features that a crate and its tests are built of."""
    tree = subprocess.run(
        ["cargo", "tree", "--locked", "-p", name, "-e", "normal,build,dev", "--prefix", "none", "-f", "{p} {f}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout
    return "\n".join(sorted({line.removesuffix(" (*)").replace(str(ROOT), "") for line in tree.splitlines()}))


def key(tier):
    """The digest of everything that can change the tier's result."""
    digest = hashlib.sha256(repr(tier).encode())
    for path in tier.paths:
        if path.startswith("../"):
            # Not part of the repository: names and sizes.
            files = sorted((ROOT / path).rglob("*")) if (ROOT / path).is_dir() else []
            listing = "".join(f"{file.relative_to(ROOT / path)} {file.stat().st_size}\n" for file in files if file.is_file())
        else:
            listing = git("ls-tree", "-r", "HEAD", "--", path) or ""
        digest.update(f"{path}\n{listing}\n".encode())
    for name in tier.packages:
        digest.update(packages(name).encode())
    if tier.packages:
        digest.update(compiler().encode())
    return digest.hexdigest()


def evidence():
    return json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else {}


def is_green(tier):
    return (CACHE / key(tier)).exists() or evidence().get(tier.name) == key(tier)


class Skipped:
    """Which tiers this run leaves out."""

    def __init__(self, run_all=False):
        green = [] if run_all or not is_clean() else [name for name, tier in TIERS.items() if is_green(tier)]
        self.repeated = green[commit() % len(green)] if green else None
        self.names = [name for name in green if name != self.repeated]

    def skips(self, tier):
        return tier in self.names

    def report(self, say):
        for name in self.names:
            say(f"SKIPPED: tier {name} ({TIERS[name].about}): nothing that it covers has changed since it passed")
        if self.repeated:
            say(f"REPEATED: tier {self.repeated}, although nothing that it covers has changed")

    def record(self, jobs, ok):
        """Writes down the tiers that passed, if everything of them ran."""
        if not is_clean():
            return
        for name, tier in TIERS.items():
            members = [job for job in jobs if job.name == f"tier {name}" or (job.row and name in (job.row.tier, job.row.every))]
            if members and all(job.state == ok for job in members):
                CACHE.mkdir(parents=True, exist_ok=True)
                (CACHE / key(tier)).touch()


def main(words):
    """`record NAME…` writes keys that this machine's cache has into the repository; `seed` prints the number that the commit
    gives to random searches; `list` shows all tiers."""
    match words:
        case ["record", *names] if names and all(name in TIERS for name in names):
            known = evidence()
            for name in names:
                if not (is_clean() and (CACHE / key(TIERS[name])).exists()):
                    sys.exit(f"error: tier {name} has not passed here as it is committed: run `bash tests/run --all` first")
                known[name] = key(TIERS[name])
            EVIDENCE.parent.mkdir(exist_ok=True)
            EVIDENCE.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        case ["list"]:
            for name, tier in TIERS.items():
                print(f"{name:12} {'green' if is_green(tier) else 'due':6} {tier.about}")
        case _:
            sys.exit(f"usage: tiers.py record {'|'.join(TIERS)}… | list")


if __name__ == "__main__":
    main(sys.argv[1:])
