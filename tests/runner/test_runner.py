"""The runner cannot excuse a failure, lose a test or wait for ever: tried with small programs in the place of test programs."""

import io
import stat
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import runner
import tiers
from runner import FAILED, LEFT_OUT, OK, TIMED_OUT, Job, Row, Runner, UsageError

PASSES = 'echo "test a ... ok"; echo "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"'


def fails(*names, status=101):
    lines = "".join(f"test {name} ... FAILED\n" for name in names)
    listed = "".join(f"    {name}\n" for name in names)
    return (
        f"cat <<'X'\n{lines}\nfailures:\n{listed}\ntest result: FAILED. 3 passed; {len(names)} failed; 0 ignored; 0 measured\nX\n"
        f"exit {status}"
    )


class RunnerTest(unittest.TestCase):
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

    def program_of_tests(self, name, script, retry=True, **more):
        row = Row("package", name, "", 1.0, 1, 1.0, retry=retry)
        return Job(row.name, [self.program(name, script)], cwd=self.folder, row=row, weight=1.0, **more)

    def run_jobs(self, *jobs):
        for job in jobs:
            self.runner.add(job)
        self.runner.run()
        return jobs

    def retried(self, *jobs):
        return runner.retry(self.run_jobs(*jobs), self.runner.say)


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

    def test_a_failed_test_is_found_in_a_line_that_others_tore(self):
        text = "test a ... noise\nFAILED\n\nfailures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured"
        self.assertEqual(["a"], runner.explained_failures(101, text))


    def test_a_failure_is_printed_with_its_end_and_without_passed_tests(self):
        many = "\n".join(f"line {n}" for n in range(200))
        text = f"test b ... ok\ntest a ... FAILED\n\nfailures:\n\n---- a stdout ----\n\n{many}\nthe reason\n\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored;"
        short = runner.shortened(text)
        self.assertIn("the reason\n\ntest result: FAILED", short)
        self.assertIn("line 0\n", short)
        self.assertNotIn("test b", short)
        self.assertNotIn("line 100\n", short)
        self.assertEqual("killed", runner.shortened("killed\n"))


class Retries(RunnerTest):
    def test_a_story_that_passes_alone_is_unstable(self):
        script = f'if [ "$1" = --exact ]; then {PASSES}; exit; fi; {fails("a")}'
        self.assertEqual(["a of package::story"], self.retried(self.program_of_tests("story", script)))

    def test_a_story_that_fails_again_has_failed(self):
        self.assertIsNone(self.retried(self.program_of_tests("story", fails("a"))))

    def test_a_unit_test_is_never_run_again(self):
        script = f'if [ "$1" = --exact ]; then {PASSES}; exit; fi; {fails("a")}'
        self.assertIsNone(self.retried(self.program_of_tests("unit", script, retry=False)))

    def test_a_failed_unit_test_is_not_excused_by_a_story_that_passes_alone(self):
        script = f'if [ "$1" = --exact ]; then {PASSES}; exit; fi; {fails("a")}'
        self.assertIsNone(self.retried(self.program_of_tests("story", script), self.program_of_tests("unit", script, retry=False)))

    def test_four_failures_are_too_many(self):
        script = f'if [ "$1" = --exact ]; then {PASSES.replace("test a", "test $2")}; exit; fi; '
        self.assertIsNotNone(self.retried(self.program_of_tests("three", script + fails("a", "b", "c"))))
        self.setUp()
        self.assertIsNone(self.retried(self.program_of_tests("four", script + fails("a", "b", "c", "d"))))

    def test_what_names_no_test_or_too_few_is_not_excused(self):
        alone = f'if [ "$1" = --exact ]; then {PASSES}; exit; fi; '
        for script in (
            "kill -9 $$",
            "exit 101",
            fails("a", status=1),
            fails("a").replace("1 failed", "2 failed"),
            'echo "test a ... FAILED"; exit 101',
        ):
            with self.subTest(script=script):
                self.setUp()
                self.assertIsNone(self.retried(self.program_of_tests("story", alone + script)))

    def test_a_retry_that_runs_no_test_or_another_one_excuses_nothing(self):
        for again in (
            "exit 0",
            'echo "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out"',
            PASSES.replace("test a", "test b"),
            PASSES + "; exit 1",
        ):
            with self.subTest(again=again):
                self.setUp()
                script = f'if [ "$1" = --exact ]; then {again}; exit; fi; {fails("a")}'
                self.assertIsNone(self.retried(self.program_of_tests("story", script)))

    def test_a_retry_that_hangs_excuses_nothing(self):
        script = f'if [ "$1" = --exact ]; then sleep 600; fi; {fails("a")}'
        self.assertIsNone(self.retried(self.program_of_tests("story", script, limit=1)))

    def test_a_failed_build_or_lint_is_not_excused(self):
        script = f'if [ "$1" = --exact ]; then {PASSES}; exit; fi; {fails("a")}'
        lint = Job("lint", [self.program("lint", "exit 101")], idle=True)
        self.assertIsNone(self.retried(self.program_of_tests("story", script), lint))


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

    def test_jobs_that_can_never_start_end_the_run(self):
        self.runner.add(self.program_of_tests("story", PASSES, needs=("nothing provides this",)))
        with self.assertRaises(UsageError):
            self.runner.run()


class Plan(unittest.TestCase):
    def test_the_plan_that_is_there_can_be_read(self):
        rows = runner.read_plan(runner.PLAN.read_text())
        self.assertGreater(len(rows), 20)
        for row in rows:
            self.assertFalse(row.retry and row.target in ("lib", "bin"), f"{row.name}: unit tests are not run again")

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
            options = mock.Mock(**{"programs": [], "arguments": [], "retry": False, **more})
            run = Runner(tiers.CACHE, out=io.StringIO())
            run.done.append(Job(f"tier {name}", [], state=OK))
            self.assertEqual(0, runner.conclude(run, options, tiers.Skipped(), 0.0))
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
