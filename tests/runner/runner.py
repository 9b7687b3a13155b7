#!/usr/bin/env python3
"""Builds and runs the tests of the workspace on all cores, and says where the time went.

`cargo test` runs one test program after the other. Many of ours wait for leases, drills and time-outs, so one of two cores stays
idle. This runner starts test programs side by side as the table `plan` allows, while what only needs a processor (the rest of the
build, pure tests) takes what they leave, at low priority. What passed with the same inputs on this machine is not run again
(`results.py`). Unit tests and simulations start before stories. The first defect ends the run, unless it is told to go on.

A test program fails when it ends with another status than 0, or prints no summary, or one with a failed test. With `--retry`, each
failed test, and each program that died or timed out, runs again three times, alone. What fails each time is a defect, and red.
Else it is UNSTABLE: it is printed with its first output, its load and its cause, and the run passes with at most five of them that
have at most two causes. Nothing else is ever excused (`test_runner.py` proves it).
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import groups
import network
import results
import scratch
import tiers

ROOT = Path(__file__).resolve().parents[2]
PLAN = Path(__file__).with_name("plan")
ENVIRONMENTS = "environments of tests"
# Tests that are known to be unstable: a reader of the list sees what is to be repaired, and until when.
KNOWN = ROOT / "tests/unstable.toml"
# The package whose tests start the real program.
STORIES = "textnlp-tests"
# The group of programs that need nothing but a processor: they run at low priority.
PURE = "pure"
# Sum of the weights of what runs at normal priority, per core.
LOAD_PER_CORE = 1.35
# Programs at low priority that run side by side.
IDLE_SLOTS = max(3, os.cpu_count() or 2)
# A tenth of the processor time of what runs beside it (sched(7)).
NICE = 10
# Cores that a program at low priority takes from others that are never idle: a tenth of two. One that stands still instead would keep
# its locks, such as that of the target folder.
BACKGROUND_LOAD = 0.2
# A program of other packages than the stories' that takes longer than this starts with the stories.
EARLY_SECONDS = 60
POLL_INTERVAL = 0.1
PROGRESS_INTERVAL = 60
LINES_OF_FAILURE = 12
# How often what failed runs again, alone.
TRIES = 3
MAX_UNSTABLE = 5
MAX_CAUSES = 2
# For how long a test may be known as unstable.
MAX_DAYS = 14
# Status of a command that says: this is not available on this machine.
UNAVAILABLE = 3

# Why something is left out, by what it needs.
REASONS = {
    "clouds": "the program is built without clouds: `bash tests/run --features textnlp-deploy/clouds` builds it with them",
    "candle": "the program is built without candle: `bash tests/run --features textnlp-deploy/candle` builds it with it",
    "control-plane": "there is no Kubernetes control plane (`bash tests/cluster/build` says why)",
    "namespaces": "no network namespaces can be made here: that takes root and `ip`",
}
# What no machine can be made to have: a run that has to have everything may be without it.
OF_MACHINES = ("namespaces",)

OK, FAILED, TIMED_OUT, LEFT_OUT, ENDED = "ok", "FAILED", "TIMED OUT", "left out", "ended"


class UsageError(Exception):
    """The plan or an argument is wrong."""


@dataclass
class Row:
    """One line of the plan: a test program, or the part of it that its filters select."""

    package: str
    target: str
    group: str
    weight: float
    threads: int
    seconds: float
    tier: str = ""
    every: str = ""
    needs: tuple = ()
    beside: float | None = None
    limit: float = 1500
    only: tuple = ()
    skip: tuple = ()
    reads: tuple = ()
    network: str = ""

    @property
    def name(self):
        part = f" [{' '.join(self.only)}]" if self.only else ""
        return f"{self.package}::{self.target}{part}"

    @property
    def is_early(self):
        """Whether it is a unit test or a simulation."""
        return self.group == PURE or (self.package != STORIES and self.seconds <= EARLY_SECONDS)


@dataclass
class Job:
    """Something that runs once: a test program or another command."""

    name: str
    argv: list
    cwd: Path = ROOT
    env: dict = field(default_factory=dict)
    row: Row | None = None
    weight: float = 0.0
    beside: float | None = None
    group: str = ""
    idle: bool = False
    seconds: float = 0.0
    limit: float = 3600
    needs: tuple = ()
    # Jobs that have to be over, however they ended.
    after: tuple = ()
    provides: str = ""
    optional: bool = False
    quiet: bool = False
    # Where standard output goes if it is not for a person.
    messages: Path | None = None
    # Set while it runs and afterwards.
    state: str = ""
    pid: int = 0
    # Everything that it started, where that is known.
    contained: groups.Group | None = None
    # When its own process ended; helpers of it may clean up for a while longer.
    exited: float = 0.0
    began: float = 0.0
    wall: float = 0.0
    cpu: float = 0.0
    status: int = 0
    # Load average when it ended.
    load: float = 0.0
    # Processes that were still there, and were killed.
    survivors: int = 0
    output: Path | None = None
    tests: dict = field(default_factory=dict)
    trace: Path | None = None


# The plan --------------------------------------------------------------------------------------------------------------------------


def read_plan(text):
    """Parses the table; every mistake is reported with its line."""
    rows, mistakes = [], []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            package, target, group, weight, threads, seconds = words[:6]
            row = Row(package, target, "" if group == "-" else group, float(weight), int(threads), float(seconds))
            for option in words[6:]:
                key, _, value = option.partition("=")
                if key in ("only", "skip", "needs", "reads") and value:
                    setattr(row, key, tuple(value.split(",")))
                    if key == "reads" and not set(row.reads) <= results.KINDS.keys():
                        raise ValueError(f"`reads` may have {', '.join(results.KINDS)}")
                elif option == "network=none":
                    row.network = value
                elif key in ("tier", "every") and value in tiers.TIERS:
                    setattr(row, key, value)
                elif key in ("beside", "limit") and value:
                    setattr(row, key, float(value))
                else:
                    raise ValueError(f"unknown option `{option}`")
            rows.append(row)
        except ValueError as error:
            mistakes.append(f"plan:{number}: {error}: {line.strip()}")
    by_program = {}
    for row in rows:
        by_program.setdefault((row.package, row.target), []).append(row)
    for (package, target), parts in by_program.items():
        rest = [row for row in parts if not row.only]
        selected = {name for row in parts for name in row.only}
        if len(rest) != 1 or set(rest[0].skip) != selected:
            mistakes.append(
                f"plan: {package} {target}: its parts do not add up: one line without `only` has to skip {sorted(selected)}"
            )
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return rows


# What a test program printed -------------------------------------------------------------------------------------------------------

RESULT = re.compile(r"^test (\S+)(?: - [^.]+)? \.\.\. (ok|FAILED|ignored)\b", re.M)
SUMMARY = re.compile(r"^test result: (ok|FAILED)\. (\d+) passed; (\d+) failed; (\d+) ignored;", re.M)
# The first random test of a program reports its seed inside the line that names it.
SEED = re.compile(r"TEXTNLP_TESTS_SEED=\d+\n")
# A test that prints while it runs can tear the line that names it; the list of failures at the end names each once more.
FAILURES = re.compile(r"^failures:\n((?:    \S+\n)+)\ntest result", re.M)


def read_tests(output):
    """The tests that the output names with their results, and its summary `(passed, failed, ignored)`, or None without one."""
    tests = {name: result for name, result in RESULT.findall(SEED.sub("", output))}
    for block in FAILURES.findall(output):
        tests.update({name: FAILED for name in block.split()})
    found = SUMMARY.findall(output)
    summary = tuple(sum(int(line[n]) for line in found) for n in (1, 2, 3)) if found else None
    return tests, summary


# What a failed test printed, until the next one or the list of names.
BLOCKS = re.compile(r"^---- (\S+) stdout ----\n(.*?)(?=^---- \S+ stdout ----\n|^failures:\n|\Z)", re.M | re.S)


def outputs_of_failures(output):
    """What each failed test printed, by its name."""
    return {name: text.strip() for name, text in BLOCKS.findall(output)}


def shortened(output, head=15, tail=60):
    """The output of a failed program without its passed tests, and the first and last lines of what each failed test printed:
    logs of CI keep only a part of a long output."""
    outputs = outputs_of_failures(output)
    if not outputs:
        return output.rstrip()
    parts = []
    for name, text in outputs.items():
        lines = text.splitlines()
        if len(lines) > head + tail:
            lines = [*lines[:head], f"[{len(lines) - head - tail} lines left out]", *lines[-tail:]]
        parts += [f"---- {name}", *lines, ""]
    return "\n".join([*parts, *(line for line in output.splitlines() if line.startswith("test result"))])


def passed(status, output):
    """Whether a test program passed: its status and its own summary must say so."""
    _, summary = read_tests(output)
    return status == 0 and summary is not None and summary[1] == 0


def explained_failures(status, output):
    """The names of the failed tests when they explain the status completely, else None: a program that was killed, timed out
    or died names no test, and nothing of it may be run again."""
    tests, summary = read_tests(output)
    failed = sorted(name for name, result in tests.items() if result == FAILED)
    if status != 101 or summary is None or not failed or summary[1] != len(failed):
        return None
    return failed


# Running ---------------------------------------------------------------------------------------------------------------------------


class Runner:
    """Starts jobs when what they need is there and the machine has room."""

    def __init__(self, folder, capacity=None, out=sys.stdout):
        self.folder = Path(folder)
        self.capacity = capacity or LOAD_PER_CORE * (os.cpu_count() or 2)
        self.out = out
        self.waiting, self.running, self.done = [], [], []
        self.facts = {}
        self.scratch = scratch.default()
        self.began = time.monotonic()
        self.on_end = {}
        self.said = self.began
        # Called as `look(failed jobs)`; says whether the run may go on.
        self.look = None
        # Whether it runs what failed again, so that nothing else may run.
        self.looks_alone = True
        self.to_look_at = []
        self.ended_early = False

    def say(self, text=""):
        print(text, file=self.out, flush=True)

    def add(self, job, on_end=None):
        """Takes a job. `on_end(job)` may add further ones."""
        if on_end:
            self.on_end[job.name] = on_end
        self.waiting.append(job)

    def run(self):
        """Runs everything to its end."""
        try:
            while (self.waiting or self.running) and not self.ended_early:
                self.drop_impossible()
                self.start_possible()
                if not self.running:
                    if self.waiting:
                        names = ", ".join(job.name for job in self.waiting)
                        raise UsageError(f"nothing can start, and these wait: {names}")
                    break
                time.sleep(POLL_INTERVAL)
                self.collect()
                if self.to_look_at and not self.waits_to_look():
                    self.look_at_failures()
                self.report_progress()
            if self.to_look_at:
                self.look_at_failures()
        finally:
            self.stop_all()

    def stop_all(self):
        """Ends all jobs with everything that they started, which may clean up first."""
        for job in self.running:
            signal_group(job.pid, signal.SIGKILL)
        until = time.monotonic() + groups.GRACE
        for job in self.running:
            if not job.exited:
                os.wait4(job.pid, 0)
            if job.contained:
                job.contained.end(until - time.monotonic())

    def waits_to_look(self):
        """Whether what failed has to wait for the end of others. A build or a check does not depend on what runs beside it."""
        return self.looks_alone and all(job.row for job in self.to_look_at) and not all(job.idle for job in self.running)

    def look_at_failures(self):
        """Looks at what failed since the last time, while what runs at low priority stands still, which does not count for its limit."""
        began = time.monotonic()
        for job in self.running:
            signal_group(job.pid, signal.SIGSTOP)
        jobs, self.to_look_at = self.to_look_at, []
        if not self.look(jobs):
            self.end_early()
        for job in self.running:
            job.began += time.monotonic() - began
            signal_group(job.pid, signal.SIGCONT)

    def end_early(self):
        """Ends the run: what waits and what runs is not needed any more."""
        self.ended_early = True
        self.stop_all()
        for job in self.running + self.waiting:
            job.state = ENDED
        self.done += self.running + self.waiting
        self.running, self.waiting = [], []

    def drop_impossible(self):
        """Leaves out what needs something that is not available, and says so."""
        for job in list(self.waiting):
            lost = [need for need in job.needs if self.facts.get(need) is False]
            if lost:
                self.waiting.remove(job)
                job.state = LEFT_OUT
                self.done.append(job)
                if job.provides:
                    self.facts[job.provides] = False

    def start_possible(self):
        for job in sorted(self.waiting, key=order):
            over = all(any(other.name == name for other in self.done) for name in job.after)
            if over and all(self.facts.get(need) for need in job.needs) and self.has_room(job):
                self.waiting.remove(job)
                self.start(job)

    def has_room(self, job):
        # What failed is looked at when nothing else runs.
        if self.to_look_at and not job.idle:
            return False
        if job.group and any(other.group == job.group for other in self.running):
            return False
        idle = sum(other.idle for other in self.running)
        if job.idle and idle >= IDLE_SLOTS:
            return False
        busy = [other for other in self.running if not other.idle]
        load = sum(other.weight for other in busy)
        if busy and not job.idle and load + job.weight > self.capacity:
            return False
        load += BACKGROUND_LOAD * idle
        if job.beside is not None and round(load, 3) > job.beside:
            return False
        own = BACKGROUND_LOAD if job.idle else job.weight
        return all(other.beside is None or round(load - other.weight + own, 3) <= other.beside for other in busy)

    def start(self, job):
        job.output = self.folder / f"{len(self.done) + len(self.running):03}-{re.sub('[^A-Za-z0-9_-]+', '_', job.name)[:80]}"
        job.contained = groups.Group() if job.row else None
        with open(job.output, "wb") as log, open(job.messages or os.devnull, "wb") as messages:
            process = subprocess.Popen(
                command_of(job, job.argv, self.scratch) if job.row else job.argv,
                cwd=job.cwd,
                env={**os.environ, **job.env},
                stdin=subprocess.DEVNULL,
                stdout=messages if job.messages else log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: prepare(job),
            )
        # Collected by wait4, which also tells the processor time.
        process.returncode = 0
        job.pid, job.began, job.state = process.pid, time.monotonic(), "running"
        self.running.append(job)

    def collect(self):
        for job in list(self.running):
            if not job.exited:
                pid, status, usage = os.wait4(job.pid, os.WNOHANG)
                job.wall = time.monotonic() - job.began
                if not pid:
                    if job.wall > job.limit and job.state == "running":
                        job.state = TIMED_OUT
                        signal_group(job.pid, signal.SIGKILL)
                    continue
                job.exited = time.monotonic()
                job.status = os.waitstatus_to_exitcode(status)
                job.cpu = usage.ru_utime + usage.ru_stime
                job.load = os.getloadavg()[0]
            if job.contained:
                if job.contained.members() and time.monotonic() - job.exited < groups.GRACE:
                    continue
                job.cpu = max(job.cpu, job.contained.cpu())
                job.survivors = job.contained.end()
            self.running.remove(job)
            self.finish(job)

    def finish(self, job):
        text = job.output.read_text(errors="replace")
        if job.row:
            job.tests, _ = read_tests(text)
        if job.state != TIMED_OUT:
            good = passed(job.status, text) if job.row else job.status == 0
            job.state = OK if good else FAILED
            if not good and job.optional and job.status == UNAVAILABLE:
                job.state = LEFT_OUT
        if job.provides:
            self.facts[job.provides] = job.state == OK
        self.done.append(job)
        self.say(f"\n== {job.name}: {job.state} after {job.wall:.1f} s ({job.cpu:.1f} s of processor time)"
                 + (f"; of its processes {job.survivors} outlived it and were killed" if job.survivors else ""))
        if not (job.quiet and job.state == OK):
            self.say(text.rstrip() if job.state == OK or not job.row else shortened(text))
        then = self.on_end.get(job.name)
        if then and job.state == OK:
            then(job)
        if self.look and job.state in (FAILED, TIMED_OUT):
            self.to_look_at.append(job)
            if self.waits_to_look():
                names = ", ".join(other.name for other in self.running if not other.idle)
                self.say(f"-- {job.name} runs again, alone, after the end of {names}: until then no other one starts")

    def report_progress(self):
        now = time.monotonic()
        if now - self.said < PROGRESS_INTERVAL:
            return
        self.said = now
        names = ", ".join(f"{job.name} ({now - job.began:.0f} s)" for job in self.running)
        self.say(f"-- {now - self.began:.0f} s: {len(self.done)} done, {len(self.waiting)} waiting, {free_space(self.folder)}; running: {names}")


def order(job):
    """First what others wait for; then unit tests and simulations, so that a defect shows early; of each the longest first, so that no
    long one is left for the end. Stories begin while the other tests are built, and the longest of them before the others."""
    return not job.provides, job.idle, bool(job.row) and not job.row.is_early, -job.seconds


def free_space(folder):
    """Tests on a full disk fail in many ways, and few of them name it."""
    return f"{shutil.disk_usage(folder).free / 1e9:.0f} GB of disk free"


def command_of(job, argv, files):
    """How the program of a job is started, with its temporary files, and without the network if the plan says so. Under strace it has
    those of the runner, where its trace is."""
    argv = argv if job.trace else files.command(argv, job.cwd)
    return network.default().command(argv) if job.row.network else argv


def prepare(job):
    """Runs in the child. At low priority it gets a tenth of what others get, and never nothing, so that its own time-outs hold."""
    if job.contained:
        job.contained.join()
    if job.idle:
        lower_priority()


def lower_priority():
    """Linux compares processes by `nice` only within a session, and sessions by a value of their own (sched(7), "The autogroup
    feature"). Each job has its own session."""
    os.nice(NICE)
    # The kernel takes one change each tenth of a second from users without privileges (EAGAIN).
    for _ in range(5):
        try:
            Path("/proc/self/autogroup").write_text(str(NICE))
        except BlockingIOError:
            time.sleep(0.2)
            continue
        except OSError:
            pass  # A kernel without sessions of that kind compares all processes.
        return


def signal_group(pid, number):
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


# Running again ---------------------------------------------------------------------------------------------------------------------

PLACE = re.compile(r"panicked at (\S+?:\d+):\d+")
# How the program under test names a cause: a line of its own, which differs between tests in names and numbers only.
SAID = re.compile(r"^ *cause: (?:\S+ )?(.*)$", re.M)


@dataclass
class Suspect:
    """What failed beside the others: a test, or (`test` is empty) a program that died or timed out."""

    job: Job
    test: str
    text: str
    passes: int = 0

    @property
    def name(self):
        return f"{self.job.row.package}::{self.job.row.target} {self.test}".rstrip()

    def cause(self, known):
        """What the list of known ones tells; else what the program under test said, apart from names and numbers; else the place."""
        if self.name in known:
            return known[self.name]["cause"]
        said, place = SAID.search(self.text), PLACE.search(self.text)
        if said:
            return " ".join(re.sub(r"\S*[/\d]\S*", "…", said[1]).split())
        return place[1] if place else self.job.row.name


def suspects(job):
    """What of a failed job may run again: a build or a check may not, it does not depend on what runs beside it."""
    if not job.row:
        return []
    text = job.output.read_text(errors="replace")
    names = explained_failures(job.status, text) if job.state == FAILED else None
    if names is None:
        return [Suspect(job, "", text)]
    outputs = outputs_of_failures(text)
    return [Suspect(job, name, outputs.get(name, "")) for name in names]


def run_alone(job, argv, limit):
    """Status and output of a command that ran in the place of a job; the status is None if it did not end in time."""
    contained = groups.Group()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command_of(job, argv, scratch.default()), cwd=job.cwd, env={**os.environ, **job.env},
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                                   preexec_fn=contained.join)
        try:
            status = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                signal_group(process.pid, signal.SIGKILL)
                process.wait()
            contained.end(groups.GRACE)
        log.seek(0)
        return status, log.read().decode(errors="replace")


def passes_alone(suspect, say, limit):
    """Whether a suspect passes when nothing else runs."""
    argv = [suspect.job.argv[0], "--exact", suspect.test] if suspect.test else suspect.job.argv
    status, text = run_alone(suspect.job, argv, limit)
    tests, summary = read_tests(text)
    good = passed(status, text) and (not suspect.test or (tests.get(suspect.test) == OK and summary[:2] == (1, 0)))
    if not good:
        say(f"it did not end within {limit:.0f} s" if status is None else shortened(text))
    return good


class Looker:
    """Looks at failures: what is a defect, and what is unstable."""

    def __init__(self, say, again=True, keep_going=False, known=None, remaining=lambda: float("inf")):
        self.say, self.again, self.keep_going, self.known, self.remaining = say, again, keep_going, known or {}, remaining
        self.unstable, self.defects = [], []

    def look(self, jobs):
        """Takes failed jobs when nothing else runs; whether the run goes on."""
        for job in jobs:
            several = suspects(job) if self.again else []
            if len(self.unstable) + len(several) > MAX_UNSTABLE:
                self.say(f"\n{len(self.unstable) + len(several)} failures are too many to be by chance: nothing runs again")
                several = []
            if several and all(self.passes(suspect) for suspect in several):
                self.unstable += several
            else:
                self.defects.append(job)
            causes = {suspect.cause(self.known) for suspect in self.unstable}
            if len(causes) > MAX_CAUSES and job not in self.defects:
                self.say(f"\n{len(causes)} causes are too many to be by chance: {', '.join(sorted(causes))}")
                self.defects.append(job)
            if self.defects and not self.keep_going:
                return False
        return True

    def passes(self, suspect):
        """Whether a suspect passes at least once when it runs again, alone."""
        for number in range(1, TRIES + 1):
            limit = min(suspect.job.limit, self.remaining())
            if limit <= 0:
                self.say(f"\n== {suspect.name} cannot run again: no time is left")
                return False
            self.say(f"\n== {suspect.name} again, alone, {number} of {TRIES}")
            good = passes_alone(suspect, self.say, limit)
            self.say("it passed" if good else "it failed")
            suspect.passes += good
        return suspect.passes > 0


def read_known(text, today):
    """The list of tests that are known to be unstable, by name. A mistake in it, or a test that stands there for too long, is an
    error: the list is for what is being repaired."""
    known, mistakes = {}, []
    for entry in tomllib.loads(text).get("test", []):
        name = entry.get("name", "a test without a name")
        missing = [key for key in ("name", "first", "count", "cause", "repair") if key not in entry]
        if missing:
            mistakes.append(f"{KNOWN.name}: {name} lacks {', '.join(missing)}")
        elif not isinstance(entry["first"], date) or (today - entry["first"]).days >= MAX_DAYS:
            mistakes.append(f"{KNOWN.name}: {name} is unstable since {entry['first']}, for {MAX_DAYS} days or more: {entry['repair']}")
        known[name] = entry
    if mistakes:
        raise UsageError("\n".join(mistakes))
    return known


# Building --------------------------------------------------------------------------------------------------------------------------


def test_programs(output):
    """The test programs in cargo's JSON messages: {(package, target): (executable, folder of the package)}."""
    found = {}
    for line in output.splitlines():
        if not line.startswith("{"):
            continue
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or not message["profile"]["test"] or not message.get("executable"):
            continue
        folder = Path(message["manifest_path"]).parent
        kind = message["target"]["kind"][0]
        target = message["target"]["name"] if kind == "test" else ("bin" if kind == "bin" else "lib")
        found[(package_name(message["package_id"]), target)] = (message["executable"], folder)
    return found


def binaries(output):
    """The executables of the workspace in cargo's JSON messages that are no test programs."""
    messages = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return sorted({message["executable"] for message in messages
                   if message.get("reason") == "compiler-artifact" and message.get("executable") and not message["profile"]["test"]})


def package_name(package_id):
    """`path+file:///a/b#name@0.1.0`, or `path+file:///a/name#0.1.0` where folder and package have one name."""
    place, _, fragment = package_id.partition("#")
    return fragment.split("@")[0] if "@" in fragment else place.rstrip("/").rsplit("/", 1)[-1]


def main():
    options = arguments()
    began = time.monotonic()
    known = read_known(KNOWN.read_text(), date.today())
    if options.seed:
        os.environ["TEXTNLP_TESTS_SEED"] = str(time.time_ns() % 2**32) if options.seed == "new" else options.seed
        print(f"random tests: --seed {os.environ['TEXTNLP_TESTS_SEED']}", flush=True)
    # What proptest draws follows the same number.
    os.environ.setdefault("PROPTEST_RNG_SEED", os.environ.get("TEXTNLP_TESTS_SEED", "1"))
    rows = read_plan(PLAN.read_text())
    chosen = [row for row in rows if not options.programs or row.target in options.programs]
    unknown = set(options.programs) - {row.target for row in rows}
    if unknown:
        raise UsageError(f"no test program is called {', '.join(sorted(unknown))}; the plan has: "
                         + ", ".join(sorted({row.target for row in rows if row.target not in ('lib', 'bin')})))
    everything = not options.programs and not options.arguments
    skipped = tiers.Skipped(run_all=options.all or not everything)
    known_results = results.Results(run_all=options.all or not everything)
    end = began + options.deadline if options.deadline else float("inf")
    with tempfile.TemporaryDirectory(prefix="textnlp-tests-") as folder:
        runner = Runner(folder)
        looker = Looker(runner.say, options.retry, options.keep_going, known, lambda: end - time.monotonic())
        runner.look, runner.looks_alone = looker.look, options.retry
        schedule(runner, options, rows, chosen, skipped, known_results)
        if options.trace:
            runner.look = None
        runner.run()
        if options.trace:
            found = {job.name: results.undeclared(job.trace.read_text(errors="replace"), ROOT, job.row.reads)
                     for job in runner.done if job.trace and job.trace.exists()}
            for name, files in sorted(found.items()):
                runner.say(f"{name} reads without `reads=`: {', '.join(files[:20])}" if files else f"{name} reads what it says")
            return 1 if any(found.values()) else 0
        good = conclude(runner, looker, options, rows, skipped, known_results, began)
    return 0 if good else 1


def schedule(runner, options, rows, chosen, skipped, known_results):
    """Adds what this run consists of. Features do not depend on the part of the selection that is built, so the stories and what
    they start can be built first without building anything twice (`selection.py` checks it)."""
    features = ["--features", options.features] if options.features else []
    selection = ["--release", "--locked", *tiers.selection(options.features), *features]
    everything = not options.programs
    started = set()

    def build(name, arguments, on_end, **more):
        messages = runner.folder / f"{name}.json"
        argv = ["cargo", "build", *arguments, "--message-format=json-render-diagnostics"]
        runner.add(Job(f"build: {name}", argv, messages=messages, provides=name, quiet=True, **more), on_end=on_end)

    def start_tests(job):
        programs = test_programs(job.messages.read_text())
        unplanned = programs.keys() - {(row.package, row.target) for row in rows}
        if unplanned:
            raise UsageError(f"these test programs have no line in {PLAN}: {sorted(unplanned)}")
        due = [(row, programs[row.package, row.target]) for row in chosen
               if (row.package, row.target) in programs and row.name not in started and not skipped.skips(row.tier)]
        started.update(row.name for row, _ in due)
        if options.trace:
            traced(runner, [test_job(row, program, options, skipped) for row, program in due])
            return programs
        for test in known_results.split([test_job(row, program, options, skipped) for row, program in due], binaries(job.messages.read_text())):
            runner.add(test, on_end=known_results.record)
        return programs

    def start_the_rest(job):
        programs = start_tests(job)
        built = [row for row in rows if row.package not in tiers.left_out(options.features)]
        missing = {(row.package, row.target) for row in built} - programs.keys()
        if missing:
            raise UsageError(f"{PLAN} names test programs that do not exist: {sorted(missing)}")

    runner.facts |= tiers.facts(options.features)
    if any("namespaces" in row.needs for row in chosen):
        runner.facts["namespaces"] = network.makes_cables()
    if options.no_cluster:
        runner.facts["control-plane"] = False
    elif any("control-plane" in row.needs for row in chosen):
        # Once per machine, at low priority: beside the build of everything else it may take more than an hour.
        runner.add(Job("control plane", ["bash", "tests/cluster/build"], provides="control-plane", idle=True, optional=True, quiet=True,
                       seconds=900, limit=7200))
    is_cut_off = any(row.network for row in chosen)
    if everything or is_cut_off:
        # Of some programs, few need a package: one that lacks its own fails by itself.
        runner.add(Job(ENVIRONMENTS, ["bash", "tests/environments"], idle=True, optional=not everything, quiet=True, seconds=800))
    if is_cut_off and not network.default().works:
        runner.say("no network namespace can be created here: the tests of clouds run with the network")
    # A warning shows after minutes: nothing else is built before.
    lints = options.lint if everything else []
    for command in lints:
        runner.add(Job(command, ["bash", "-c", command], weight=runner.capacity, group="cargo", seconds=3000))
    # One cargo at a time: each waits for the lock of the target folder anyway.
    last = None
    if any(row.package == STORIES for row in chosen):
        build("stories", ["--release", "--locked", *features, "-p", "textnlp-deploy", "-p", STORIES, "--bins", "--test", "*"],
              start_tests, weight=runner.capacity, seconds=2000, after=tuple(lints))
        last = "stories"
    if any(row.package != STORIES for row in chosen):
        build("all tests", [*selection, "--bins", "--tests"], start_the_rest, idle=bool(last), seconds=1500, needs=(last,) if last else ())
        last = "all tests"
    if not everything:
        return
    chain = [("documentation tests", ["cargo", "test", *selection, "--doc", "--quiet"], False)]
    chain += [(command, ["bash", "-c", command], False) for command in options.also]
    chain += [(f"tier {tier.name}", ["bash", "-c", tier.command], True) for tier in tiers.TIERS.values()
              if tier.command and (options.ci or options.all) and not skipped.skips(tier.name)]
    # What fails leaves nothing out: the next one of the group tells what else is wrong.
    for name, argv, optional in chain:
        runner.add(Job(name, argv, idle=True, group="cargo", needs=(last,), optional=optional, seconds=900))


def traced(runner, jobs):
    """Adds test programs under strace. What they read without saying so is reported; their results are not: a debugger disturbs."""
    for job in jobs:
        job.trace = runner.folder / f"trace-{re.sub('[^A-Za-z0-9_-]+', '_', job.name)}"
        job.argv = [*results.STRACE, str(job.trace), *job.argv]
        runner.add(job)


def test_job(row, program, options, skipped):
    executable, folder = program
    argv = [executable, f"--test-threads={row.threads}", *row.only]
    for name in row.skip:
        argv += ["--skip", name]
    env = {"CARGO_MANIFEST_DIR": str(folder), "CARGO_PKG_NAME": row.package}
    if row.every and not skipped.skips(row.every):
        env["TEXTNLP_TESTS_EVERY"] = "1"
    if "namespaces" in row.needs:
        env["TEXTNLP_TESTS_REQUIRE_NAMESPACES"] = "1"
    pure = row.group == PURE
    return Job(row.name, argv + options.arguments, cwd=folder, env=env, row=row, weight=0 if pure else row.weight, beside=row.beside,
               group="" if pure else row.group, idle=pure, seconds=row.seconds, limit=row.limit, needs=row.needs,
               # Without the network a test cannot install the packages that it asks for.
               after=(ENVIRONMENTS,) if row.network else ())


FATES = ("RAN", "UNSTABLE", "CACHED", "SKIPPED", "LEFT OUT")


def fates(runner, rows, chosen, skipped, known_results, features, unstable=()):
    """What became of each line of the plan, one of `FATES`. A line without a fate is a mistake of the runner. `unstable` are the names
    of lines with an unstable test."""
    jobs = {job.name: job for job in runner.done if job.row}
    found = {}
    for row in rows:
        job = jobs.get(row.name)
        if row not in chosen:
            found[row.name] = "LEFT OUT: not asked for"
        elif row.package in tiers.left_out(features):
            found[row.name] = "LEFT OUT: " + next(REASONS[name] for name, crates in tiers.OF_FEATURES.items() if row.package in crates)
        elif skipped.skips(row.tier):
            found[row.name] = f"SKIPPED: tier {row.tier}"
        elif row.name in known_results.cached:
            found[row.name] = "CACHED"
        elif job and job.state == LEFT_OUT:
            lost = [need for need in row.needs if not runner.facts.get(need)]
            found[row.name] = "LEFT OUT: " + REASONS.get(lost[0] if lost else "", "what it needs failed")
        elif job and job.state != ENDED:
            found[row.name] = "UNSTABLE" if row.name in unstable else "RAN"
        elif runner.ended_early:
            found[row.name] = "LEFT OUT: the run ended before"
    return found


def conclude(runner, looker, options, rows, skipped, known_results, began):
    """Prints the results; whether the run is green."""
    say = runner.say
    jobs = runner.done
    say("\n== where the time went\n")
    say(f"{'':60} {'from':>7} {'wall':>7} {'cpu':>7}")
    for job in sorted((job for job in jobs if job.state not in (LEFT_OUT, ENDED)), key=lambda job: job.began):
        say(f"{job.name[:60]:60} {job.began - runner.began:7.0f} {job.wall:7.1f} {job.cpu:7.1f}"
            + ("" if job.state == OK else f"  {job.state}"))
    wall, cpu = time.monotonic() - began, sum(job.cpu for job in jobs)
    say(f"{'all':60} {'':7} {wall:7.1f} {cpu:7.1f}   {cpu / wall:.2f} cores busy, {free_space(runner.folder)}")

    say()
    known_results.report(say)
    chosen = [row for row in rows if not options.programs or row.target in options.programs]
    unstable = {suspect.job.row.name for suspect in looker.unstable}
    became = fates(runner, rows, chosen, skipped, known_results, options.features, unstable)
    for name, fate in became.items():
        if fate.startswith("LEFT OUT") and fate != "LEFT OUT: not asked for":
            say(f"{fate.replace('LEFT OUT', f'LEFT OUT: {name}', 1)}")
    for job in jobs:
        if job.state == LEFT_OUT and not job.row:
            lost = [need for need in job.needs if not runner.facts.get(need)]
            say(f"LEFT OUT: {job.name}: " + (f"`{lost[0]}` failed" if lost else "it is not available on this machine"))
    skipped.report(say)
    if not (options.ci or options.all or options.programs):
        names = ", ".join(tier.name for tier in tiers.TIERS.values() if tier.command)
        say(f"LEFT OUT: the checks of tiers {names}: `bash tests/run --ci` runs them")

    good = not looker.defects
    lost = sorted(row.name for row in rows if row.name not in became)
    if lost:
        say(f"FAILED: the runner lost {', '.join(lost)}")
        good = False
    # Where everything can be had, nothing may be left out.
    excused = {f"LEFT OUT: {REASONS[need]}" for need in OF_MACHINES}
    without = sorted(name for name, fate in became.items() if fate.startswith("LEFT OUT") and fate not in excused)
    if options.ci and good and without:
        say(f"FAILED: {len(without)} lines of the plan were left out, and this run has to have them all")
        good = False
    for suspect in looker.unstable:
        say(f"UNSTABLE: {suspect.name} failed beside the others at a load of {suspect.job.load:.1f} and passed {suspect.passes} of {TRIES} "
            f"times alone; cause: {suspect.cause(looker.known)}"
            + ("" if suspect.name in looker.known else f"; not in {KNOWN.name}: find out why"))
        say("\n".join(f"    {line}" for line in shortened(suspect.text).splitlines()[-LINES_OF_FAILURE:]))
    for job in looker.defects:
        names = sorted(name for name, result in job.tests.items() if result == FAILED)
        say(f"{job.state}: {job.name}" + (f": {', '.join(names)}" if names else ""))
        printed = outputs_of_failures(job.output.read_text(errors="replace")) if job.row else {}
        for name, text in printed.items():
            say("\n".join(f"    {line}" for line in [f"{name}:", *text.splitlines()[-LINES_OF_FAILURE:]]))
    # A part of the programs or of their tests says nothing about a whole tier.
    if good and not options.programs and not options.arguments:
        skipped.record(jobs, OK)
        known_results.tidy()
    counted = [fate.partition(":")[0] for fate in became.values()]
    say(f"\n{len(rows)} lines of the plan: "
        + ", ".join(f"{counted.count(fate)} {fate}" for fate in FATES if fate in counted))
    for suspect in looker.unstable:
        say(f"UNSTABLE: {suspect.name}")
    outcomes = [result for job in jobs for result in job.tests.values()]
    passed_again = sum(1 for suspect in looker.unstable if suspect.test)
    failed = outcomes.count(FAILED) - passed_again
    if not good:
        failed = max(failed, 1)
    say(f"\n{outcomes.count('ok') + passed_again} passed, {failed} failed, {outcomes.count('ignored')} skipped")
    return good


def arguments():
    parser = argparse.ArgumentParser(prog="tests/run", description="Builds and runs the tests of the workspace.")
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="run only these test programs, by the name of their file or folder")
    parser.add_argument("--retry", action="store_true", help="run what failed again, alone, and list what passes then as UNSTABLE")
    parser.add_argument("--keep-going", action="store_true", help="go on after the first defect")
    parser.add_argument("--trace", action="store_true", help="run the programs under strace, and list the files that they read without `reads=` in the plan")
    parser.add_argument("--deadline", type=float, default=0, metavar="SECONDS", help="run nothing again after this time")
    parser.add_argument("--seed", default="", metavar="N|new", help="the first seed of random tests; `new` draws one and prints it")
    parser.add_argument("--ci", action="store_true", help="run the checks of tiers as well, such as licenses of dependencies")
    parser.add_argument("--all", action="store_true", help="skip no tier and use no cached result, even if nothing has changed")
    parser.add_argument("--features", default="", help="cargo features of the program, such as textnlp-deploy/clouds")
    parser.add_argument("--no-cluster", action="store_true", help="leave out the tests that need a Kubernetes control plane")
    parser.add_argument("--lint", action="append", default=[], metavar="COMMAND",
                        help="run this command before the builds; its failure ends the run")
    parser.add_argument("--also", action="append", default=[], metavar="COMMAND", help="run this command beside the tests; its failure fails the run")
    given = sys.argv[1:]
    rest = given[given.index("--") + 1:] if "--" in given else []
    options = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    options.arguments = rest
    return options


if __name__ == "__main__":
    # A runner that is stopped stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
