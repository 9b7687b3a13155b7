"""What a workflow of CI may do: actions are pinned, and code of dependencies never runs with a right to write or beside a secret."""

import pathlib
import re
import unittest

WORKFLOWS = sorted((pathlib.Path(__file__).resolve().parents[2] / ".github/workflows").glob("*.yml"))
# A right to write, or a secret.
PRIVILEGE = re.compile(r": write\b|\bsecrets\.|write-all")
# Programs that build or run crates.
BUILD = re.compile(r"\b(cargo|rustup)\b|\.ci/(tool|run|audit|miri)\b|tests/(run|fuzz)\b")
# What anybody who opens a pull request or pushes a tag can choose must not be part of a script.
CHOSEN = re.compile(r"\$\{\{\s*(github\.(event|head_ref|ref_name)|needs\.|steps\.|inputs\.)")


def jobs(text):
    _, listed = text.split("\njobs:\n")
    parts = re.split(r"^  ([a-z-]+):\n", listed, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


class Workflows(unittest.TestCase):
    def test_actions_are_pinned_to_commits(self):
        used = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
        self.assertGreater(len(used), 4)
        for line in used:
            self.assertRegex(line, r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")

    def test_privileged_jobs_build_nothing(self):
        privileged = []
        for path in WORKFLOWS:
            head, _ = path.read_text().split("\njobs:\n")
            self.assertIn("\npermissions:", head, f"{path.name} has the default rights")
            self.assertNotRegex(head, PRIVILEGE, f"{path.name} gives all jobs a right")
            for name, job in jobs(path.read_text()).items():
                if PRIVILEGE.search(job):
                    privileged.append(name)
                    self.assertNotRegex(job, BUILD, f"{path.name}: {name}")
        self.assertEqual(privileged, ["propose", "publish"])

    def test_scripts_contain_no_text_of_others(self):
        for path in WORKFLOWS:
            for line in path.read_text().splitlines():
                if CHOSEN.search(line):
                    self.assertRegex(line, r"^ +(record|RECORD): ", f"{path.name}: give it to the script as a variable")

    def test_jobs_that_build_leave_no_token_in_the_checkout(self):
        for path in WORKFLOWS:
            for name, job in jobs(path.read_text()).items():
                if BUILD.search(job):
                    self.assertEqual(job.count("actions/checkout@"), job.count("persist-credentials: false"), f"{path.name}: {name}")


if __name__ == "__main__":
    unittest.main()
