#!/bin/sh
# Renews licenses.txt and elsewhere.txt from Cargo.lock and cargo's own graph of what is linked.
#   licenses.txt   name, version and license of every crate that is linked into some program
#   elsewhere.txt  name and version of every other crate with `never`, and of those that are linked into some programs only, with
#                  the conditions: `linux/amd64`, `linux/arm64`, `clouds` and `candle` (features); `|` is or
#   bundles/src/sbom/licenses.sh
set -eu
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for platform in amd64:x86_64 arm64:aarch64; do
  target=${platform#*:}-unknown-linux-gnu
  for features in none clouds candle; do
    flags=
    [ "$features" = none ] || flags="--features $features"
    # shellcheck disable=SC2086
    cargo tree --locked --package textnlp-deploy --edges normal,no-proc-macro --prefix none --format '{p}' --target "$target" $flags \
      --manifest-path ../../../Cargo.toml > "$folder/linux-${platform%:*}.$features"
  done
  cargo metadata --format-version 1 --locked --features textnlp-deploy/clouds,textnlp-deploy/candle --filter-platform "$target" --manifest-path ../../../Cargo.toml \
    > "$folder/$target.json"
done
python3 - "$folder" ../../../Cargo.lock <<'PY'
import json, pathlib, re, sys, tomllib

folder = pathlib.Path(sys.argv[1])
graphs = {}
for file in folder.glob("linux-*"):
    platform, features = file.name.replace("-", "/", 1).split(".")
    graphs[platform, features] = {(m[1], m[2]) for m in re.finditer(r"^(\S+) v(\S+)", file.read_text(), re.M)}
stated = {}
for file in folder.glob("*.json"):
    stated |= {(p["name"], p["version"]): p["license"] for p in json.loads(file.read_text())["packages"]}
locked = tomllib.loads(pathlib.Path(sys.argv[2]).read_text())["package"]
licenses, elsewhere, missing = [], [], []
for package in locked:
    key = package["name"], package["version"]
    within = {build for build, crates in graphs.items() if key in crates}
    if within and "source" in package:
        if not stated.get(key):
            missing.append(" ".join(key))
        # The older way of writing "or" is a slash, which SPDX does not know.
        licenses.append(" ".join(key) + " " + re.sub(r"\s*/\s*", " OR ", stated.get(key) or ""))
    platforms, features = {p for p, _ in within}, {f for _, f in within}
    conditions = sorted(platforms) if len(platforms) == 1 else []
    conditions += ["|".join(sorted(features))] if features and "none" not in features else []
    holds = lambda p, f: all({p, f} & set(c.split("|")) for c in conditions)
    if not within:
        elsewhere.append(" ".join(key) + " never")
    elif {build for build in graphs if holds(*build)} != within:
        sys.exit(f"{key} is linked into {sorted(within)}, which no list of conditions says")
    elif conditions:
        elsewhere.append(" ".join([*key, *conditions]))
if missing:
    sys.exit("no license is stated by " + ", ".join(missing))
for path, lines in [("licenses.txt", licenses), ("elsewhere.txt", elsewhere)]:
    pathlib.Path(path).write_text("".join(line + "\n" for line in sorted(lines)))
    print(len(lines), path)
PY
