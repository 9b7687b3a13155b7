#!/bin/sh
# Renews licenses.txt: of every crate in Cargo.lock that is not ours, the license that its manifest states.
#   bundles/src/sbom/licenses.sh
set -eu
cd "$(dirname "$0")"
# The older way of writing "or" is a slash, which SPDX does not know.
cargo metadata --format-version 1 --locked --manifest-path ../../../Cargo.toml | python3 -c '
import json, re, sys
for p in json.load(sys.stdin)["packages"]:
    if p["source"] and p["license"]:
        print(p["name"], p["version"], re.sub(r"\s*/\s*", " OR ", p["license"]))
' | LC_ALL=C sort > licenses.txt.new
mv licenses.txt.new licenses.txt
wc -l licenses.txt
