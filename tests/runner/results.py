"""Results: a test program that passed on this machine with the same inputs is not run again, and is printed as CACHED.

The inputs are its executable, the programs of this workspace that it may start, the files of the repository that it may read, the
packages of the machine, its processor and kernel, the seed if it reads one, its line in the plan, and whether it has the network. It
may read every file but Rust sources, documentation and the files of CI; its line in the plan says `reads=` where it reads those. `bash
tests/run --trace` runs the programs under strace and fails for what one reads without saying so. A work tree with changes that are not
committed uses and records nothing, and every run repeats those that have not run for the longest time: at least a twentieth of what is
cached.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from functools import cache
from pathlib import Path

import network
import tiers

CACHE = Path.home() / ".cache/textnlp-deploy/results"
# The part of the cached time that every run repeats.
REPEATED = 0.05
# Records that nobody asked for any more are removed after this time.
KEPT_SECONDS = 30 * 86400

# The seeds of random tests. They are inputs of a test program if it, or a program that it starts, contains their names: what passed
# with new seeds and reads none is not run again with the usual ones.
SEEDS = ("TEXTNLP_TESTS_SEED", "PROPTEST_RNG_SEED")

# What a program does not read unless its line in the plan says so. The first kind that fits is that of the file.
KINDS = {
    "ci": re.compile(r"^(\.ci|\.github|tests/runner|tests/evidence|tests/supply_chain)/|^tests/run$|^tests/unstable\.toml$"),
    "sources": re.compile(r"\.rs$"),
    "docs": re.compile(r"\.md$|^docs/|^LICENSE$"),
}


def kind(path):
    """The kind of a file of the repository; empty for those that every program may read."""
    return next((name for name, pattern in KINDS.items() if pattern.search(path)), "")


@cache
def files(reads):
    """A digest of the files that a program with these `reads` may read."""
    digest = hashlib.sha256()
    for line in (tiers.git("ls-tree", "-r", "HEAD") or "").splitlines():
        about, _, path = line.partition("\t")
        if kind(path) in ("", *reads):
            digest.update(f"{about} {path}\n".encode())
    return digest.hexdigest()


@cache
def machine():
    """Everything else that may change a result here."""
    packages = subprocess.run(["dpkg-query", "-W"], capture_output=True, text=True).stdout if Path("/usr/bin/dpkg-query").exists() else ""
    processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0] if Path("/proc/cpuinfo").exists() else ""
    processor = "\n".join(line for line in processor.splitlines() if line.startswith(("model name", "flags")))
    return "\n".join([packages, processor, str(os.cpu_count()), platform.release(), platform.python_version(), str(os.geteuid())])


@cache
def content(path):
    """Digest and bytes of an executable."""
    data = Path(path).read_bytes()
    return hashlib.sha256(data).hexdigest(), data


def key(row, argv, env, programs):
    """The digest of the inputs of a test program. `programs` are those of this workspace: it may start those that it names."""
    executable, data = content(argv[0])
    starts = [path for path in programs if Path(path).name.encode() in data]
    started = sorted(f"{Path(path).name} {content(path)[0]}" for path in starts)
    unread = {name for name in SEEDS if not any(name.encode() in text for text in [data, *(content(path)[1] for path in starts)])}
    settings = {name: value for name, value in os.environ.items()
                if name.startswith(("TEXTNLP_", "PROPTEST_")) and name not in unread}
    # Its place in the order is no input. What passed with the network may fail without it.
    is_cut_off = bool(row.network) and network.default().works
    plan = [row.package, row.target, row.threads, row.only, row.skip, row.reads, is_cut_off]
    inputs = [plan, argv[1:], sorted(env.items()), sorted(settings.items()), executable, started, files(row.reads), machine()]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


class Results:
    """Which programs this run does not run again."""

    def __init__(self, run_all=False, folder=CACHE):
        self.folder = folder
        # Without git nobody can tell what has changed.
        self.usable = tiers.is_clean()
        self.run_all = run_all
        self.cached = {}
        self.repeated = []
        self.keys = {}

    def split(self, jobs, programs):
        """Takes the jobs of test programs, and returns those that have to run."""
        if not self.usable:
            return jobs
        known = []
        for job in jobs:
            self.keys[job.name] = key(job.row, job.argv, job.env, programs)
            record = self.folder / self.keys[job.name]
            if not self.run_all and record.exists():
                known.append((json.loads(record.read_text()), job))
        content.cache_clear()
        known.sort(key=lambda pair: pair[0]["when"])
        due = REPEATED * sum(record["seconds"] for record, _ in known)
        for record, job in known:
            if due > 0:
                due -= record["seconds"]
                self.repeated.append(job.name)
            else:
                self.cached[job.name] = record
        return [job for job in jobs if job.name not in self.cached]

    def record(self, job):
        """Writes down that a test program passed."""
        if not self.usable or job.name not in self.keys:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"name": job.name, "commit": f"{tiers.commit():x}"[:9], "when": time.time(), "seconds": job.wall, "tests": len(job.tests)}
        place = self.folder / self.keys[job.name]
        new = place.with_suffix(".new")
        new.write_text(json.dumps(record))
        new.rename(place)

    def report(self, say):
        for name, record in sorted(self.cached.items()):
            hours = (time.time() - record["when"]) / 3600
            say(f"CACHED: {name}: {record['tests']} tests passed at {record['commit']}, {hours:.1f} h ago, with the same inputs")
        for name in self.repeated:
            say(f"REPEATED: {name}, although it passed before with the same inputs")

    def tidy(self):
        """Removes records that are too old to matter."""
        if self.folder.is_dir():
            for record in self.folder.iterdir():
                if time.time() - record.stat().st_mtime > KEPT_SECONDS:
                    record.unlink(missing_ok=True)


# Finding what is read without being declared ----------------------------------------------------------------------------------------

OPENED = re.compile(r"\bopen(?:at)?\(.*\) = \d+<([^>]+)>$", re.M)
STRACE = ("strace", "-f", "-qq", "-y", "-e", "trace=open,openat", "-o")


def undeclared(trace, root, reads):
    """The files of the repository in strace's output that a program read without `reads`."""
    found = set()
    for match in OPENED.finditer(trace):
        path = Path(match[1])
        if path.is_relative_to(root) and path.is_file():
            name = str(path.relative_to(root))
            if kind(name) not in ("", *reads):
                found.add(name)
    return sorted(found)
