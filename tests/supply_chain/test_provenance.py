"""The statement of a release: what it says, and what it refuses to say."""

import hashlib
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / ".ci" / "provenance"
STARTED = "2026-01-01T00:00:00Z"
ACTIONS = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.example",
    "GITHUB_REPOSITORY": "owner/textnlp",
    "GITHUB_REF": "refs/tags/v1.0.0",
    "GITHUB_WORKFLOW_REF": "owner/textnlp/.github/workflows/release.yml@refs/tags/v1.0.0",
    "GITHUB_RUN_ID": "7",
    "GITHUB_RUN_ATTEMPT": "1",
}


class Provenance(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.source, self.out = pathlib.Path(folder.name, "source"), pathlib.Path(folder.name, "out")
        self.source.mkdir()
        self.out.mkdir()
        (self.source / "Cargo.lock").write_text("version = 4\n")
        (self.out / "program").write_bytes(b"a program")
        self.digest = hashlib.sha256(b"a program").hexdigest()
        (self.out / "SHA256SUMS").write_text(f"{self.digest}  program\n")
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.git("-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "--quiet", "--message", "one")
        self.commit = self.git("rev-parse", "HEAD")

    def git(self, *arguments):
        run = subprocess.run(["git", "-C", self.source, *arguments], check=True, capture_output=True, text=True)
        return run.stdout.strip()

    def run_script(self, **variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
        arguments = ["--commit", self.commit, "--features", "clouds", "--target", "x86_64-unknown-linux-gnu", "--started", STARTED, "--source", self.source]
        return subprocess.run(
            ["python3", SCRIPT, self.out, *arguments], capture_output=True, text=True, env=environment | variables
        )

    def statement(self, **variables):
        run = self.run_script(**variables)
        self.assertEqual(run.returncode, 0, run.stderr)
        return json.loads(run.stdout)

    def test_statement_names_files_commit_and_lock(self):
        statement = self.statement()
        self.assertEqual(statement["_type"], "https://in-toto.io/Statement/v1")
        self.assertEqual(statement["predicateType"], "https://slsa.dev/provenance/v1")
        self.assertEqual(statement["subject"], [{"name": "program", "digest": {"sha256": self.digest}}])
        build = statement["predicate"]["buildDefinition"]
        self.assertEqual(build["externalParameters"], {"features": ["clouds"], "target": "x86_64-unknown-linux-gnu"})
        self.assertIn("rustc ", build["internalParameters"]["rustc"])
        lock = hashlib.sha256(b"version = 4\n").hexdigest()
        self.assertEqual(
            build["resolvedDependencies"],
            [
                {"name": "source", "digest": {"gitCommit": self.commit}},
                {"name": "Cargo.lock", "digest": {"sha256": lock}},
            ],
        )
        details = statement["predicate"]["runDetails"]
        self.assertEqual(details["builder"], {"id": "urn:textnlp:builder:local"})
        self.assertEqual(details["metadata"]["startedOn"], STARTED)
        self.assertNotIn(str(self.source.parent), json.dumps(statement), "no path of the building machine")

    def test_statement_of_ci_names_workflow_and_run(self):
        predicate = self.statement(**ACTIONS)["predicate"]
        source = predicate["buildDefinition"]["resolvedDependencies"][0]
        self.assertEqual(source["uri"], "git+https://github.example/owner/textnlp@refs/tags/v1.0.0")
        details = predicate["runDetails"]
        self.assertEqual(details["builder"]["id"], f"https://github.example/{ACTIONS['GITHUB_WORKFLOW_REF']}")
        self.assertEqual(
            details["metadata"]["invocationId"], "https://github.example/owner/textnlp/actions/runs/7/attempts/1"
        )

    def refuses(self, words):
        run = self.run_script()
        self.assertNotEqual(run.returncode, 0)
        self.assertEqual(run.stdout, "")
        self.assertIn(words, run.stderr)

    def test_changed_file_is_refused(self):
        (self.out / "program").write_bytes(b"another program")
        self.refuses("program does not have the digest in SHA256SUMS")

    def test_changed_working_tree_is_refused(self):
        (self.source / "Cargo.lock").write_text("version = 3\n")
        self.refuses("the working tree has changes")

    def test_commit_that_is_not_checked_out_is_refused(self):
        self.commit = "0" * 40
        self.refuses("is not at commit 0000")

    def test_empty_release_is_refused(self):
        (self.out / "SHA256SUMS").write_text("")
        self.refuses("lists no file")


if __name__ == "__main__":
    unittest.main()
