"""The record of the crates that touch secrets or the network, compared with what is linked into the program."""

import hashlib
import json
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORD = ".ci/dependencies"
TOUCHED = {"secrets", "network"}
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


def linked():
    """Name and version of every crate of others in the program; another test compares this table with cargo's graph."""
    lines = (ROOT / "bundles/src/sbom/licenses.txt").read_text().splitlines()
    return {tuple(line.split(" ")[:2]) for line in lines}


def read(text):
    """The lines of crates that touch something, by name and version, the names of the others, and accepted advisories."""
    touching, neither, accepted = {}, [], set()
    for line in text.splitlines():
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if words[0] == "neither":
            neither += words[1:]
            continue
        if words[0] == "accepted":
            _, advisory, name, version, _ = line.split(None, 4)
            accepted.add((advisory, name, version))
            continue
        name, version, touches, repository, reason = line.split(None, 4)
        if (name, version) in touching:
            raise ValueError(f"{name} {version} has two lines")
        touching[name, version] = (set(touches.split(",")), repository, reason)
    return touching, neither, accepted


def problems(text, crates, lock, audit):
    touching, neither, accepted = read(text)
    found = []
    names = {name for name, _ in touching}
    for name, version in sorted(crates):
        if name in names and (name, version) not in touching:
            found.append(f"{name} {version} touches secrets or the network and has no line")
        elif name not in names and name not in neither:
            found.append(f"{name} {version} is new: look at it, and write what it touches")
    found += [f"{name} {version} is not linked any more" for name, version in sorted(set(touching) - crates)]
    found += [f"{name} is not linked any more" for name in sorted(set(neither) - {name for name, _ in crates})]
    found += [f"{name} is listed twice" for name in sorted(set(neither)) if neither.count(name) > 1 or name in names]
    blocks = [dict(re.findall(r'^(\w+) = "(.*)"$', block, re.M)) for block in lock.split("[[package]]")[1:]]
    locked = {(package["name"], package["version"]): package for package in blocks}
    warned = [entry for entries in audit["warnings"].values() for entry in entries]
    if audit["lock_sha256"] != hashlib.sha256(lock.encode()).hexdigest():
        found.append("cli/evidence/audit.json is of another Cargo.lock")
    for (name, version), (touches, repository, _) in sorted(touching.items()):
        package = locked.get((name, version), {})
        if package.get("source") != REGISTRY or len(package.get("checksum", "")) != 64:
            found.append(f"{name} {version} is not from crates.io with a checksum")
        if not touches or touches - TOUCHED:
            found.append(f"{name} {version} touches {sorted(touches)}, not {sorted(TOUCHED)}")
        if not repository.startswith("https://"):
            found.append(f"{name} {version} has no repository")
        for entry in audit["vulnerabilities"] + warned:
            is_accepted = any(entry == f"{name} {version} {advisory}" for advisory, *crate in accepted if crate == [name, version])
            if not is_accepted and re.search(rf"(^| ){re.escape(name)} {re.escape(version)}(:| |$)", entry):
                found.append(f"{name} {version} has an advisory: {entry}")
    known = {tuple(entry.split()[:3]) for entry in warned}
    found += [f"{name} {version} has no advisory {advisory} any more" for advisory, name, version in sorted(accepted)
              if (name, version, advisory) not in known]
    return found


class Dependencies(unittest.TestCase):
    def setUp(self):
        self.text = (ROOT / RECORD).read_text()
        self.lock = (ROOT / "Cargo.lock").read_text()
        self.audit = json.loads((ROOT / "cli/evidence/audit.json").read_text())
        self.crates = linked()

    def problems(self, **changed):
        given = {"text": self.text, "crates": self.crates, "lock": self.lock, "audit": self.audit} | changed
        return problems(given["text"], given["crates"], given["lock"], given["audit"])

    def test_record_is_complete(self):
        self.assertEqual(self.problems(), [], f"write the lines of {RECORD}, after you have looked")

    def test_change_without_a_line_is_found(self):
        touching, neither, _ = read(self.text)
        (name, version) = next(iter(sorted(touching)))
        other = self.crates - {(name, version)} | {(name, "99.0.0")}
        found = self.problems(crates=other)
        self.assertIn(f"{name} 99.0.0 touches secrets or the network and has no line", found)
        self.assertIn(f"{name} {version} is not linked any more", found)
        self.assertEqual(
            self.problems(crates=self.crates | {("evil", "1.0.0")}),
            ["evil 1.0.0 is new: look at it, and write what it touches"],
        )
        self.assertEqual(self.problems(crates=self.crates | {(neither[0], "99.0.0")}), [], "it may have any version")
        self.assertEqual(self.problems(text=self.text + f"neither {name}\n"), [f"{name} is listed twice"])

    def test_claims_are_compared(self):
        touching, _, _ = read(self.text)
        (name, version) = next(iter(sorted(touching)))
        entry = f"{name} {version} RUSTSEC-2026-0001"
        warned = self.audit | {"warnings": self.audit["warnings"] | {"other": [entry]}}
        self.assertEqual(self.problems(audit=warned), [f"{name} {version} has an advisory: {entry}"])
        reason = f"accepted RUSTSEC-2026-0001 {name} {version} a reason\n"
        self.assertEqual(self.problems(audit=warned, text=self.text + reason), [])
        self.assertEqual(
            self.problems(text=self.text + reason), [f"{name} {version} has no advisory RUSTSEC-2026-0001 any more"]
        )
        flawed = self.audit | {"vulnerabilities": [f"RUSTSEC-2026-0002 {name} {version}: a flaw"]}
        self.assertEqual(len(self.problems(audit=flawed)), 1)
        git = self.lock.replace(
            f'name = "{name}"\nversion = "{version}"\nsource = "{REGISTRY}"',
            f'name = "{name}"\nversion = "{version}"\nsource = "git+https://example.com/x"',
        )
        self.assertIn(f"{name} {version} is not from crates.io with a checksum", self.problems(lock=git))
        self.assertIn("cli/evidence/audit.json is of another Cargo.lock", self.problems(lock=git))


if __name__ == "__main__":
    unittest.main()
