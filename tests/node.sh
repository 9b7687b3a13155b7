#!/bin/sh
# node.sh NAME: prints the path of the node_modules of tests/node/NAME, and `node` itself as `.bin/node`.
# The versions are pinned: a contract test that changes under our feet tests nothing.
set -eu
exec bash "$(dirname "$0")/environments" node "${1:?name the folder in tests/node}"
