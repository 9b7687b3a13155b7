#!/bin/sh
# Renews licenses.txt and elsewhere.txt from the manifests of the crates in Cargo.lock.
#   licenses.txt   name, version and license of every crate that is linked into the program on Linux
#   elsewhere.txt  name and version of every other crate: for other systems, for builds and for tests
#   bundles/src/sbom/licenses.sh
set -eu
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu; do
  cargo metadata --format-version 1 --locked --features textnlp-deploy/clouds --filter-platform "$target" --manifest-path ../../../Cargo.toml > "$folder/$target"
done
python3 - "$folder" ../../../Cargo.lock <<'PY'
import json, pathlib, re, sys, tomllib

linked = {}
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    metadata = json.loads(file.read_text())
    packages = {p["id"]: p for p in metadata["packages"]}
    needs = {n["id"]: [d["pkg"] for d in n["deps"] if any(k["kind"] is None for k in d["dep_kinds"])] for n in metadata["resolve"]["nodes"]}
    waiting = [p["id"] for p in packages.values() if p["name"] == "textnlp-deploy"]
    seen = set()
    while waiting:
        at = waiting.pop()
        if at not in seen:
            seen.add(at)
            waiting += needs[at]
    for package in (packages[at] for at in seen):
        if package["source"]:
            linked[package["name"], package["version"]] = package["license"]
missing = [" ".join(key) for key, license in sorted(linked.items()) if not license]
if missing:
    sys.exit("no license is stated by " + ", ".join(missing))
locked = {(p["name"], p["version"]) for p in tomllib.loads(pathlib.Path(sys.argv[2]).read_text())["package"] if "source" in p}
# The older way of writing "or" is a slash, which SPDX does not know.
licenses = [f"{name} {version} " + re.sub(r"\s*/\s*", " OR ", license) for (name, version), license in linked.items()]
elsewhere = [" ".join(key) for key in locked - linked.keys()]
for path, lines in [("licenses.txt", licenses), ("elsewhere.txt", elsewhere)]:
    pathlib.Path(path).write_text("".join(line + "\n" for line in sorted(lines)))
    print(len(lines), path)
PY
