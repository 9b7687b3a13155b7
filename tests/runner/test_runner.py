"""The runner cannot excuse a failure, lose a test or wait for ever: tried with small programs in the place of test programs."""

import io
import itertools
import os
import shlex
import stat
import subprocess
import sys
import tempfile
import unittest
from datetime import date
from pathlib import Path
from unittest import mock

import groups
import network
import results
import runner
import scratch
import tiers
from runner import ENDED, FAILED, LEFT_OUT, OK, TIMED_OUT, Job, Row, Runner, UsageError

PASSES = 'echo "test a ... ok"; echo "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"'


def fails(*names, status=101):
    lines = "".join(f"test {name} ... FAILED\n" for name in names)
    listed = "".join(f"    {name}\n" for name in names)
    return (
        f"cat <<'X'\n{lines}\nfailures:\n{listed}\ntest result: FAILED. 3 passed; {len(names)} failed; 0 ignored; 0 measured\nX\n"
        f"exit {status}"
    )


class RunnerTest(unittest.TestCase):
    numbers = itertools.count()

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out = io.StringIO()
        self.runner = Runner(self.folder, capacity=2.0, out=self.out)

    def program(self, name, script):
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def program_of_tests(self, name, script, **more):
        row = Row("package", name, "", 1.0, 1, 1.0)
        return Job(row.name, [self.program(name, script)], cwd=self.folder, row=row, weight=1.0, **more)

    def run_jobs(self, *jobs):
        for job in jobs:
            self.runner.add(job)
        self.runner.run()
        return jobs

    def looked_at(self, *jobs, known=None, **more):
        """What is unstable of these jobs, by name, or None when a failure is not excused."""
        self.looker = runner.Looker(self.runner.say, known=known, **more)
        self.runner.look, self.runner.looks_alone = self.looker.look, self.looker.again
        self.run_jobs(*jobs)
        return None if self.looker.defects else [suspect.name for suspect in self.looker.unstable]

    def only_alone(self, first, again=PASSES, tries=""):
        """A program that does `first` beside the others and `again` alone; `tries` limits `again` to some of the three tries."""
        count = self.folder / f"count-{next(self.numbers)}"
        return f"""
            n=$(cat {count} 2>/dev/null || echo 0); echo $((n + 1)) >{count}
            case $n in {f"[{tries}]" if tries else "[1-9]*"}) {again}; exit;; esac
            {first}"""


class Results(RunnerTest):
    def test_a_program_passes_only_with_a_status_and_a_summary_that_say_so(self):
        good, silent, cut, lying = self.run_jobs(
            self.program_of_tests("good", PASSES),
            self.program_of_tests("silent", "exit 0"),
            self.program_of_tests("cut", 'echo "test a ... ok"; exit 0'),
            self.program_of_tests("lying", fails("a", status=0)),
        )
        self.assertEqual([OK, FAILED, FAILED, FAILED], [good.state, silent.state, cut.state, lying.state])

    def test_a_program_that_is_killed_or_hangs_fails(self):
        killed, hangs = self.run_jobs(
            self.program_of_tests("killed", f"{PASSES}; kill -9 $$"), self.program_of_tests("hangs", "sleep 600", limit=0.3)
        )
        self.assertEqual([FAILED, TIMED_OUT], [killed.state, hangs.state])
        self.assertEqual(-9, killed.status)

    def test_what_left_the_session_of_a_program_ends_with_it_after_it_could_clean_up(self):
        probe = groups.Group()
        with mock.patch.object(groups, "GRACE", 0.5):
            joined = subprocess.run(["sh", "-c", "echo in"], stdout=subprocess.PIPE, preexec_fn=lambda: probe.join() or os._exit(1))
            probe.end()
            if joined.stdout != b"in\n":
                self.skipTest("no control group may be made here")
            pid, cleaned = self.folder / "pid", self.folder / "cleaned"
            cleans = f"(setsid sh -c 'sleep 0.2; echo >{cleaned}' &)"
            (job,) = self.run_jobs(self.program_of_tests("left", f"{cleans}; setsid sleep 600 & echo $! >{pid}; {PASSES}"))
        self.assertEqual((OK, 1, True), (job.state, job.survivors, cleaned.exists()))
        self.assertIn("of its processes 1 outlived it", self.out.getvalue())
        self.assertFalse(Path(f"/proc/{pid.read_text().strip()}/exe").exists())

    def test_a_group_is_made_below_that_of_the_runner(self):
        own = self.folder / "own"
        own.write_text("4:cpuacct:/slice/job\n3:cpuset:/\n0::/slice/job\n")
        for place in ("cpuacct/slice/job", "slice/job", "unified/slice/job"):
            (self.folder / place).mkdir(parents=True)
            (self.folder / place / groups.MEMBERS).touch()
        found = [str(place.relative_to(self.folder)) for place in groups.places(own, self.folder)]
        self.assertEqual(["cpuacct/slice/job", "slice/job", "unified/slice/job"], found)
        own.write_text("0::/../../other\n")
        self.assertEqual([], groups.places(own, self.folder))

    def test_without_control_groups_programs_run_as_well(self):
        none = groups.Group(within=())
        none.join()
        self.assertEqual((0, 0.0, []), (none.end(), none.cpu(), none.members()))

    def test_a_failed_test_is_found_in_a_line_that_others_tore(self):
        text = "test a ... noise\nFAILED\n\nfailures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured"
        self.assertEqual(["a"], runner.explained_failures(101, text))


    def test_a_seed_that_is_reported_inside_a_line_hides_no_test(self):
        tests, _ = runner.read_tests("test random::a ... TEXTNLP_TESTS_SEED=3353857402\nok\ntest b ... ok\n")
        self.assertEqual(tests, {"random::a": OK, "b": OK})

    def test_a_failure_is_printed_with_its_end_and_without_passed_tests(self):
        many = "\n".join(f"line {n}" for n in range(200))
        text = f"test b ... ok\ntest a ... FAILED\n\nfailures:\n\n---- a stdout ----\n\n{many}\nthe reason\n\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored;"
        short = runner.shortened(text)
        self.assertIn("the reason\n\ntest result: FAILED", short)
        self.assertIn("line 0\n", short)
        self.assertNotIn("test b", short)
        self.assertNotIn("line 100\n", short)
        self.assertEqual("killed", runner.shortened("killed\n"))


def at(place, *names):
    """Failed tests that print the place of their panic."""
    blocks = "".join(f"---- {name} stdout ----\nthread '{name}' panicked at {place}:9:5:\nwhy\n\n" for name in names)
    return fails(*names).replace("\nfailures:\n", f"\nfailures:\n\n{blocks}\nfailures:\n", 1)


class Again(RunnerTest):
    def test_what_passes_alone_once_in_three_is_unstable(self):
        for tries in ("", "1", "2", "3"):
            with self.subTest(tries=tries):
                self.setUp()
                self.assertEqual(["package::story a"], self.looked_at(self.program_of_tests("story", self.only_alone(fails("a"), tries=tries))))

    def test_what_fails_three_times_alone_has_failed(self):
        self.assertIsNone(self.looked_at(self.program_of_tests("story", fails("a"))))
        self.assertEqual(3, self.out.getvalue().count("it failed"))

    def test_a_program_that_died_or_hung_runs_again_as_a_whole(self):
        for first in ("kill -9 $$", "exit 101", "sleep 600", fails("a", status=1), fails("a").replace("1 failed", "2 failed"),
                      'echo "test a ... FAILED"; exit 101'):
            with self.subTest(first=first):
                self.setUp()
                job = self.program_of_tests("story", self.only_alone(first), limit=1)
                self.assertEqual(["package::story"], self.looked_at(job))
                self.setUp()
                self.assertIsNone(self.looked_at(self.program_of_tests("story", first, limit=0.3)))

    def test_a_failure_is_not_excused_by_another_one_that_passes_alone(self):
        story = self.program_of_tests("story", self.only_alone(fails("a")))
        self.assertIsNone(self.looked_at(story, self.program_of_tests("unit", fails("a"))))

    def test_six_failures_are_too_many(self):
        again = PASSES.replace("test a", "test $2")
        self.assertEqual(5, len(self.looked_at(self.program_of_tests("five", self.only_alone(at("x.rs:1", *"abcde"), again)))))
        self.setUp()
        self.assertIsNone(self.looked_at(self.program_of_tests("six", self.only_alone(at("x.rs:1", *"abcdef"), again))))

    def test_three_causes_are_too_many(self):
        def stories(places):
            self.setUp()
            return [self.program_of_tests(f"s{n}", self.only_alone(at(place, "a"))) for n, place in enumerate(places)]

        self.assertEqual(3, len(self.looked_at(*stories(["x.rs:1", "x.rs:1", "y.rs:2"]))))
        self.assertIsNone(self.looked_at(*stories(["x.rs:1", "y.rs:2", "z.rs:3"])))
        known = {f"package::s{n} a": {"cause": "one"} for n in (0, 1)}
        self.assertEqual(3, len(self.looked_at(*stories(["x.rs:1", "y.rs:2", "z.rs:3"]), known=known)))

    def test_what_the_program_says_is_the_cause_apart_from_names_and_numbers(self):
        job = self.program_of_tests("story", PASSES)
        one = "panicked at x.rs:1:2:\nerror: up regions: 2 steps failed\n  cause: create primary/secrets/key: no answer within 10 s\n"
        two = "panicked at x.rs:8:2:\nerror: up regions: 3 steps failed\n  cause: create tertiary/secrets/key: no answer within 12 s\n"
        other = one.replace("no answer within 10 s", "permission denied")
        causes = [runner.Suspect(job, "a", text).cause({}) for text in (one, two, other)]
        self.assertEqual(causes[0], causes[1])
        self.assertNotEqual(causes[0], causes[2])
        self.assertIn("no answer within", causes[0])
        self.assertEqual("x.rs:1", runner.Suspect(job, "a", "panicked at x.rs:1:2:\nleft: 1").cause({}))

    def test_what_runs_no_test_or_another_one_or_too_long_excuses_nothing(self):
        for again in (
            "exit 0",
            'echo "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out"',
            PASSES.replace("test a", "test b"),
            PASSES + "; exit 1",
            "sleep 600",
        ):
            with self.subTest(again=again):
                self.setUp()
                self.assertIsNone(self.looked_at(self.program_of_tests("story", self.only_alone(fails("a"), again), limit=0.5)))

    def test_nothing_runs_again_after_the_deadline(self):
        story = self.program_of_tests("story", self.only_alone(fails("a")))
        self.assertIsNone(self.looked_at(story, remaining=lambda: 0.0))
        self.assertNotIn("it passed", self.out.getvalue())

    def test_a_failed_build_or_lint_is_not_excused(self):
        lint = Job("lint", [self.program("lint", "exit 101")], idle=True)
        self.assertIsNone(self.looked_at(self.program_of_tests("story", self.only_alone(fails("a"))), lint))

    def test_the_time_for_which_a_program_stands_still_does_not_count_for_its_limit(self):
        # Short sleeps, because one goes on while its process stands still.
        slow = self.program_of_tests("slow", f"for each in $(seq 20); do sleep 0.1; done; {PASSES}", limit=4)
        slow.idle = True
        story = self.program_of_tests("story", self.only_alone(fails("a"), f"sleep 1.2; {PASSES}"))
        self.assertEqual(["package::story a"], self.looked_at(slow, story))
        self.assertEqual(OK, slow.state)

    def test_a_defect_ends_the_run_unless_it_goes_on(self):
        slow = self.program_of_tests("slow", f"sleep 600; {PASSES}", limit=700)
        slow.idle = True
        later = self.program_of_tests("later", PASSES, needs=("never",))
        self.assertIsNone(self.looked_at(slow, self.program_of_tests("story", fails("a")), later))
        self.assertEqual([ENDED, ENDED], [slow.state, later.state])
        self.setUp()
        after = self.program_of_tests("after", PASSES)
        after.seconds = 0.1
        self.assertIsNone(self.looked_at(self.program_of_tests("story", fails("a")), after, keep_going=True))
        self.assertEqual(OK, after.state)

    def test_a_failed_lint_ends_the_run_at_once_and_a_failed_test_when_nothing_else_runs(self):
        slow = self.program_of_tests("slow", f"sleep 1; {PASSES}")
        slow.weight = 0.1
        story = self.program_of_tests("story", self.only_alone(fails("a")))
        story.weight = 0.1
        self.assertEqual(["package::story a"], self.looked_at(slow, story))
        self.assertEqual(OK, slow.state)
        printed = [self.out.getvalue().index(text) for text in (
            "package::story runs again, alone, after the end of package::slow", "== package::slow: ok", "package::story a again, alone")]
        self.assertEqual(sorted(printed), printed)
        self.setUp()
        slow = self.program_of_tests("slow", f"sleep 600; {PASSES}", limit=700)
        slow.weight = 0.1
        self.assertIsNone(self.looked_at(slow, Job("lint", [self.program("lint", "exit 1")], idle=True)))
        self.assertEqual(ENDED, slow.state)

    def test_without_retry_a_failed_test_is_a_defect(self):
        self.assertIsNone(self.looked_at(self.program_of_tests("story", self.only_alone(fails("a"))), again=False))

    def test_without_retry_a_defect_ends_the_run_at_once(self):
        slow, story = self.program_of_tests("slow", f"sleep 600; {PASSES}", limit=700), self.program_of_tests("story", fails("a"))
        self.assertIsNone(self.looked_at(slow, story, again=False))
        self.assertEqual(ENDED, slow.state)


class Verdict(RunnerTest):
    def conclude(self, *jobs, rows=None, ci=True, cached=(), features="x/clouds,x/candle"):
        self.looked_at(*jobs)
        options = mock.Mock(programs=[], arguments=[], ci=ci, all=False, features=features)
        known = results.Results(folder=self.folder / "results")
        known.cached = {name: {"tests": 1, "commit": "c", "when": 0, "seconds": 1} for name in cached}
        rows = rows if rows is not None else [job.row for job in jobs if job.row]
        with mock.patch.object(tiers, "is_clean", lambda: False):
            return runner.conclude(self.runner, self.looker, options, rows, tiers.Skipped(run_all=True), known, 0.0)

    def test_a_run_passes_with_what_is_unstable_and_says_so(self):
        self.assertTrue(self.conclude(self.program_of_tests("story", self.only_alone(at("x.rs:1", "a")))))
        for words in ("UNSTABLE: package::story a failed", "cause: x.rs:1", "    why", "1 passed, 0 failed"):
            self.assertIn(words, self.out.getvalue())

    def test_lines_of_the_plan_add_up_by_fate_and_the_end_names_what_is_unstable(self):
        stable, unstable = (self.program_of_tests("stable", PASSES),
                            self.program_of_tests("story", self.only_alone(at("x.rs:1", "a", "b"), PASSES.replace("test a", "test $2"))))
        self.assertTrue(self.conclude(stable, unstable))
        _, _, end = self.out.getvalue().partition("\n2 lines of the plan: ")
        self.assertEqual(["1 RAN, 1 UNSTABLE", "UNSTABLE: package::story a", "UNSTABLE: package::story b"], end.splitlines()[:3])

    def test_a_defect_is_red(self):
        self.assertFalse(self.conclude(self.program_of_tests("story", fails("a"))))
        self.assertIn("FAILED: package::story: a", self.out.getvalue())
        self.assertIn("0 passed, 1 failed", self.out.getvalue())

    def test_each_line_of_the_plan_has_a_fate_or_the_run_is_red(self):
        rows = [Row("package", name, "", 1.0, 1, 1.0) for name in ("here", "cached", "lost")]
        self.assertTrue(self.conclude(self.program_of_tests("here", PASSES), rows=rows[:2], cached=["package::cached"]))
        self.assertIn("CACHED: package::cached", self.out.getvalue())
        self.setUp()
        self.assertFalse(self.conclude(self.program_of_tests("here", PASSES), rows=rows))
        self.assertIn("the runner lost package::cached, package::lost", self.out.getvalue())

    def test_what_cannot_be_had_is_red_where_everything_can_be_had(self):
        def jobs():
            self.setUp()
            plane = Job("control plane", [self.program("a", "exit 3")], provides="control-plane", optional=True)
            story = self.program_of_tests("story", PASSES, needs=("control-plane",))
            story.row.needs = ("control-plane",)
            return plane, story

        self.assertFalse(self.conclude(*jobs()))
        self.assertIn("LEFT OUT: package::story: there is no Kubernetes control plane", self.out.getvalue())
        self.assertTrue(self.conclude(*jobs(), ci=False))

    def test_what_needs_namespaces_may_be_left_out_where_none_can_be_made(self):
        story = self.program_of_tests("story", PASSES, needs=("namespaces",))
        story.row.needs = ("namespaces",)
        self.runner.facts["namespaces"] = False
        self.assertTrue(self.conclude(story))
        self.assertIn("LEFT OUT: package::story: no network namespaces can be made here", self.out.getvalue())

    def test_what_needs_namespaces_may_not_leave_itself_out(self):
        row = Row("package", "story", "", 1.0, 1, 1.0, needs=("namespaces",))
        job = runner.test_job(row, ("story", self.folder), mock.Mock(arguments=[]), tiers.Skipped(run_all=True))
        self.assertEqual("1", job.env["TEXTNLP_TESTS_REQUIRE_NAMESPACES"])
        for script, works in (("exit 0", True), ('[ "$1" = netns ]', False), ("exit 1", False)):
            self.assertEqual(works, network.makes_cables(self.program("ip", script)), script)
        self.assertFalse(network.makes_cables(str(self.folder / "missing")))

    def test_crates_of_features_that_are_not_built_are_left_out_aloud(self):
        rows = [Row("textnlp-aws", "lib", "", 1.0, 1, 1.0)]
        self.assertTrue(self.conclude(rows=rows, ci=False, features=""))
        self.assertIn("LEFT OUT: textnlp-aws::lib: the program is built without clouds", self.out.getvalue())


class Cached(RunnerTest):
    def setUp(self):
        super().setUp()
        for name, value in {"is_clean": lambda: True, "commit": lambda: 1, "git": lambda *_: "1 blob a\tx.rs\n1 blob b\tREADME.md\n1 blob c\tdata"}.items():
            patch = mock.patch.object(tiers, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        results.files.cache_clear()
        self.addCleanup(results.files.cache_clear)

    def split(self, jobs, programs=(), **more):
        known = results.Results(folder=self.folder / "results", **more)
        return known, [job.name for job in known.split(list(jobs), list(programs))]

    def recorded(self, *names, script=PASSES):
        jobs = [self.program_of_tests(name, script) for name in names]
        for number, job in enumerate(jobs):
            known, _ = self.split(jobs)
            job.wall = 1.0
            with mock.patch.object(results.time, "time", lambda number=number: 1000.0 + number):
                known.record(job)
        return jobs

    def test_what_passed_is_not_run_again_but_the_oldest_is(self):
        jobs = self.recorded(*"abc")
        known, due = self.split(jobs)
        self.assertEqual(["package::a"], due)
        self.assertEqual((["package::a"], {"package::b", "package::c"}), (known.repeated, set(known.cached)))
        self.assertEqual(3, len(self.split(jobs, run_all=True)[1]))

    def test_any_other_input_runs_it_again(self):
        tool = self.program("tool", "exit 0")

        def due(change=lambda job: None, programs=(tool,)):
            job = self.program_of_tests("b", PASSES + "\n# starts tool")
            change(job)
            # Another one is the oldest.
            return "package::b" in self.split([other, job], programs)[1]

        other = self.recorded("a")[0]
        job = self.program_of_tests("b", PASSES + "\n# starts tool")
        job.wall = 1.0
        known, _ = self.split([other, job], [tool])
        known.record(job)
        self.assertFalse(due())
        self.assertTrue(due(lambda job: job.argv.append("--skip")))
        self.assertTrue(due(lambda job: job.env.update(A="1")))
        self.assertTrue(due(lambda job: setattr(job.row, "reads", ("docs",))))
        with mock.patch.dict(results.os.environ, {"TEXTNLP_OTHER": "7"}):
            self.assertTrue(due())
        with mock.patch.object(results, "machine", lambda: "another kernel"):
            self.assertTrue(due())
        for path, changed in (("x.rs", False), ("README.md", False), ("data", True)):
            results.files.cache_clear()
            with mock.patch.object(tiers, "git", lambda *_, path=path: "".join(
                    f"1 blob {'changed' if name == path else blob}\t{name}\n" for name, blob in (("x.rs", "a"), ("README.md", "b"), ("data", "c")))):
                self.assertEqual(changed, due(), path)
        results.files.cache_clear()
        self.program("tool", "exit 1")
        self.assertTrue(due())

    def test_another_seed_runs_again_what_reads_it(self):
        tool = self.program("tool", "exit 0 # PROPTEST_RNG_SEED")

        def due(seed):
            with mock.patch.dict(results.os.environ, {"TEXTNLP_TESTS_SEED": seed, "PROPTEST_RNG_SEED": seed}):
                jobs = [self.program_of_tests("oldest", PASSES), self.program_of_tests("random", PASSES + "\n# TEXTNLP_TESTS_SEED"),
                        self.program_of_tests("drawn", PASSES + "\n# PROPTEST_RNG_SEED"), self.program_of_tests("fixed", PASSES),
                        self.program_of_tests("starter", PASSES + "\n# starts tool")]
                known, _ = self.split(jobs, [tool])
                ran = [job.name for job in jobs if job.name not in known.cached and job.name not in known.repeated]
                for when, job in enumerate(jobs):
                    job.wall = 1.0
                    with mock.patch.object(results.time, "time", lambda when=when: 1000.0 + when):
                        known.record(job)
                return ran

        self.assertEqual(5, len(due("7")))
        self.assertEqual([], due("7"))
        self.assertEqual(["package::random", "package::drawn", "package::starter"], due("8"))

    def test_changes_that_are_not_committed_use_and_record_nothing(self):
        jobs = self.recorded("a", "b")
        with mock.patch.object(tiers, "is_clean", lambda: False):
            self.assertEqual(2, len(self.split(jobs)[1]))
            known, _ = self.split([self.program_of_tests("c", PASSES)])
            known.record(self.program_of_tests("c", PASSES))
        self.assertEqual(2, len(list((self.folder / "results").iterdir())))

    def test_only_what_passed_is_recorded(self):
        good, bad = self.program_of_tests("good", PASSES), self.program_of_tests("bad", fails("a"))
        known, _ = self.split([good, bad])
        for job in (good, bad):
            self.runner.add(job, on_end=known.record)
        self.runner.run()
        self.assertEqual(["package::good"], [runner.json.loads(path.read_text())["name"] for path in (self.folder / "results").iterdir()])

    def test_a_read_that_is_not_declared_is_found(self):
        root = self.folder
        for name in ("a.rs", "b.md", "c.json"):
            (root / name).write_text("")
        trace = "".join(f'7 openat(AT_FDCWD</x>, "{name}", O_RDONLY|O_CLOEXEC) = 3<{root}/{name}>\n' for name in ("a.rs", "b.md", "c.json"))
        trace += '7 openat(AT_FDCWD</x>, "d.rs", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        self.assertEqual(["a.rs", "b.md"], results.undeclared(trace, root, ()))
        self.assertEqual(["a.rs"], results.undeclared(trace, root, ("docs",)))


class Known(unittest.TestCase):
    def entry(self, **more):
        entry = {"name": '"p::t a"', "first": "2026-11-01", "count": "1", "cause": '"c"', "repair": '"r"', **more}
        return "[[test]]\n" + "".join(f"{key} = {value}\n" for key, value in entry.items() if value)

    def test_a_test_is_known_for_two_weeks_and_then_an_error(self):
        self.assertEqual(["p::t a"], list(runner.read_known(self.entry(), date(2026, 11, 14))))
        with self.assertRaises(UsageError):
            runner.read_known(self.entry(), date(2026, 11, 15))

    def test_an_entry_has_to_be_complete(self):
        for key in ("name", "first", "count", "cause", "repair"):
            with self.subTest(key=key), self.assertRaises(UsageError):
                runner.read_known(self.entry(**{key: ""}), date(2026, 11, 2))

    def test_the_list_that_is_there_can_be_read(self):
        runner.read_known(runner.KNOWN.read_text(), date(2000, 1, 1))


class Scheduling(RunnerTest):
    def test_weights_groups_and_neighbours_are_kept(self):
        log = self.folder / "log"
        script = f"echo + $0 >>{log}; sleep 0.4; echo - $0 >>{log}; {PASSES}"
        quiet = self.program_of_tests("quiet", script)
        quiet.beside = 0.5
        one, two = self.program_of_tests("one", script), self.program_of_tests("two", script)
        one.group = two.group = "cluster"
        self.run_jobs(quiet, one, two)
        running, most = set(), []
        for line in log.read_text().splitlines():
            sign, name = line.split()
            running.add(Path(name).name) if sign == "+" else running.discard(Path(name).name)
            most.append(frozenset(running))
        self.assertFalse(any(len(names) > 1 for names in most), most)

    def test_work_at_low_priority_counts_beside_a_quiet_program(self):
        count = 'ls RUNNING | wc -l >>LOG'.replace("RUNNING", str(self.folder / "running")).replace("LOG", str(self.folder / "log"))
        (self.folder / "running").mkdir()
        quiet = self.program_of_tests("quiet", f"for each in $(seq 8); do sleep 0.1; {count}; done; {PASSES}")
        quiet.beside = 2.5 * runner.BACKGROUND_LOAD
        own = self.folder / "running/$$"
        low = [Job(f"low {n}", ["sh", "-c", f"touch {own}; sleep 0.5; rm {own}"], idle=True) for n in range(4)]
        with mock.patch.object(runner, "IDLE_SLOTS", 4):
            self.run_jobs(quiet, *low)
        self.assertEqual({OK}, {job.state for job in (quiet, *low)})
        self.assertLessEqual(max(map(int, (self.folder / "log").read_text().split())), 2)

    def test_unit_tests_start_before_stories_and_the_longest_first(self):
        programs = {"story": (runner.STORIES, 30), "unit": ("package", 1), "simulation": ("package", 60), "long": ("package", 61)}
        jobs = []
        for name, (package, seconds) in programs.items():
            job = self.program_of_tests(name, PASSES, seconds=seconds)
            job.row.package, job.row.seconds, job.weight = package, seconds, 2.0
            jobs.append(job)
        build = Job("build", ["true"], provides="built", weight=2.0)
        self.run_jobs(*jobs, build)
        began = sorted((job.began, job.name.partition("::")[2] or job.name) for job in (*jobs, build))
        self.assertEqual(["build", "simulation", "unit", "long", "story"], [name for _, name in began])

    @unittest.skipUnless(os.path.exists("/proc/self/autogroup"), "this kernel has no groups of sessions")
    def test_work_at_low_priority_has_it_beside_other_sessions(self):
        job = self.program_of_tests("low", "cat /proc/self/autogroup; nice")
        job.idle = True
        self.run_jobs(job)
        self.assertRegex(job.output.read_text(), r"nice 10\n10\n")

    def test_what_needs_something_unavailable_is_left_out_and_what_fails_is_not(self):
        missing = Job("control plane", [self.program("a", "exit 3")], provides="control-plane", optional=True)
        broken = Job("build", [self.program("b", "exit 1")], provides="built", optional=True)
        story = self.program_of_tests("story", PASSES, needs=("control-plane",))
        self.run_jobs(missing, broken, story)
        self.assertEqual([LEFT_OUT, FAILED, LEFT_OUT], [missing.state, broken.state, story.state])

    def test_what_needs_something_that_was_left_out_is_left_out_too(self):
        broken = Job("stories", [self.program("b", "exit 1")], provides="stories")
        build = Job("all tests", [self.program("a", "exit 0")], provides="all tests", needs=("stories",))
        tier = Job("tier", [self.program("c", "exit 0")], needs=("all tests",))
        self.run_jobs(broken, build, tier)
        self.assertEqual([FAILED, LEFT_OUT, LEFT_OUT], [broken.state, build.state, tier.state])

    def test_what_comes_after_another_one_waits_for_its_end_however_it_ends(self):
        log = self.folder / "log"
        lint = Job("lint", [self.program("lint", f"sleep 0.3; echo lint >>{log}; exit 1")], weight=0.1)
        build = Job("build", [self.program("build", f"echo build >>{log}")], weight=0.1, after=("lint",), seconds=9)
        self.run_jobs(lint, build)
        self.assertEqual("lint\nbuild\n", log.read_text())

    def test_jobs_that_can_never_start_end_the_run(self):
        self.runner.add(self.program_of_tests("story", PASSES, needs=("nothing provides this",)))
        with self.assertRaises(UsageError):
            self.runner.run()


class ScratchTest(RunnerTest):
    def test_program_has_temporary_files_of_its_own(self):
        self.runner.scratch = scratch.Scratch(available=lambda: scratch.ENOUGH)
        if not self.runner.scratch.works:
            self.skipTest("nothing may be mounted here")
        mark = scratch.PLACE / f"textnlp-mark-{os.getpid()}"
        job = self.program_of_tests("writes", "")
        job.argv, job.cwd = ["sh", "-c", f"touch {mark} && ls {mark}; {PASSES}"], Path("/")
        self.run_jobs(job)
        self.assertEqual(job.state, OK)
        self.assertIn(str(mark), job.output.read_text())
        self.assertFalse(mark.exists())

    def test_where_it_does_not_work_programs_start_as_they_are(self):
        self.assertFalse(scratch.Scratch(["false"], lambda: scratch.ENOUGH).works)
        self.assertFalse(scratch.Scratch(["env"], lambda: scratch.ENOUGH, self.folder).works, "it hides nothing")
        made = scratch.Scratch(["env"], lambda: scratch.ENOUGH, self.folder)
        made.works = True
        self.assertEqual(made.command(["story"]), ["env", "story"])
        self.assertEqual(made.command([str(self.folder / "story")]), [str(self.folder / "story")], "it would be hidden")
        made.available = lambda: scratch.ENOUGH - 1
        self.assertEqual(made.command(["story"]), ["story"], "memory is short")

    def test_limit_of_a_container_counts(self):
        (self.folder / "meminfo").write_text("MemTotal: 999 kB\nMemAvailable:  100 kB\n")
        self.assertEqual(scratch.available_memory(self.folder / "meminfo", self.folder), 100 << 10)
        for text, bytes_ in (("max", 100 << 10), ("8192", 4096)):
            (self.folder / "memory.max").write_text(f"{text}\n")
            self.assertEqual(scratch.available_memory(self.folder / "meminfo", self.folder), bytes_)


class NetworkTest(RunnerTest):
    def test_program_without_the_network_reaches_this_machine_only(self):
        if not network.default().works:
            self.skipTest("no network namespace can be created here")
        # An address for documentation, and a server on loopback.
        script = (
            "import socket\n"
            "server = socket.create_server(('127.0.0.1', 0))\n"
            "socket.create_connection(server.getsockname())\n"
            "try:\n    socket.create_connection(('203.0.113.1', 443), 60)\n"
            "except OSError as error:\n    print(error)\n"
        )
        job = self.program_of_tests("asks", "")
        job.row.network = "none"
        job.argv, job.cwd = ["sh", "-c", f'{shlex.quote(sys.executable)} -c "$0"; {PASSES}', script], Path("/")
        self.run_jobs(job)
        self.assertEqual(job.state, OK)
        self.assertIn("Network is unreachable", job.output.read_text())

    def test_program_under_strace_is_without_the_network_too(self):
        made = network.Network(["false"])
        made.within, made.works = ["env", "CUT_OFF=1"], True
        job = self.program_of_tests("traced", f'[ "$CUT_OFF" = 1 ] && {{ {PASSES}; }}', trace=self.folder / "trace")
        job.row.network = "none"
        with mock.patch.object(network, "default", lambda: made):
            self.run_jobs(job)
        self.assertEqual(job.state, OK)

    def test_where_it_does_not_work_programs_start_as_they_are(self):
        # Without the rule, its default route leads to every host.
        open_to_all = [word.replace("ip rule add priority 100 unreachable; ", "") for word in network.WITHIN]
        self.assertNotEqual(open_to_all, network.WITHIN)
        for within in (["false"], open_to_all):
            self.assertEqual(network.Network(within).command(["story"]), ["story"])
        with mock.patch("network.subprocess.run", side_effect=subprocess.TimeoutExpired("unshare", network.PROBE_LIMIT)):
            self.assertFalse(network.Network().works)


class Plan(unittest.TestCase):
    def test_the_plan_that_is_there_can_be_read(self):
        rows = runner.read_plan(runner.PLAN.read_text())
        self.assertGreater(len(rows), 20)

    def test_parts_of_a_program_have_to_add_up(self):
        for text in (
            "p t - 1 1 1 only=a",
            "p t - 1 1 1\np t - 1 1 1 only=a",
            "p t - 1 1 1 skip=a,b\np t - 1 1 1 only=a",
            "p t - 1 1 1 skip=a",
            "p t - 1 1 1\np t - 1 1 1",
            "p t - 1 1 1 retri",
            "p t - 1 1",
        ):
            with self.subTest(text=text), self.assertRaises(UsageError):
                runner.read_plan(text)
        self.assertEqual(2, len(runner.read_plan("p t - 1 1 1 skip=a,b # why\np t - 1 1 1 only=a,b")))


class Tiers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name, value in {
            "CACHE": Path(folder.name),
            "is_clean": lambda: True,
            "key": lambda tier: f"key of {tier.name}",
            "evidence": dict,
        }.items():
            patch = mock.patch.object(tiers, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def pass_all(self):
        tiers.Skipped().record([Job(f"tier {name}", [], state=OK) for name in tiers.TIERS], OK)

    def test_a_tier_is_skipped_after_it_passed_and_each_run_repeats_one(self):
        self.assertEqual([], tiers.Skipped().names)
        self.pass_all()
        for number in range(len(tiers.TIERS)):
            with mock.patch.object(tiers, "commit", lambda: number):
                skipped = tiers.Skipped()
                self.assertEqual(len(tiers.TIERS) - 1, len(skipped.names))
                self.assertEqual(list(tiers.TIERS)[number], skipped.repeated)
                lines = []
                skipped.report(lines.append)
                self.assertEqual(len(tiers.TIERS), len(lines))

    def test_a_tier_that_failed_or_did_not_run_is_not_recorded(self):
        first, second, *_ = tiers.TIERS
        tiers.Skipped().record([Job(f"tier {first}", [], state=FAILED), Job(f"tier {second}", [], state=LEFT_OUT)], OK)
        self.assertEqual([], tiers.Skipped().names)

    def test_a_run_of_some_programs_or_tests_records_no_tier(self):
        name = next(iter(tiers.TIERS))
        for more in ({"programs": ["story"]}, {"arguments": ["name"]}):
            options = mock.Mock(**{"programs": [], "arguments": [], "ci": False, "features": "", **more})
            run = Runner(tiers.CACHE, out=io.StringIO())
            run.done.append(Job(f"tier {name}", [], state=OK))
            known = results.Results(folder=tiers.CACHE / "results")
            self.assertTrue(runner.conclude(run, runner.Looker(run.say), options, [], tiers.Skipped(), known, 0.0))
            self.assertEqual([], list(tiers.CACHE.iterdir()))

    def test_changes_that_are_not_committed_skip_nothing(self):
        self.pass_all()
        with mock.patch.object(tiers, "is_clean", lambda: False):
            self.assertEqual([], tiers.Skipped().names)

    def test_all_skips_nothing(self):
        self.pass_all()
        self.assertEqual([], tiers.Skipped(run_all=True).names)


if __name__ == "__main__":
    unittest.main()
