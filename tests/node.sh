#!/bin/sh
# node.sh PACKAGE@VERSION: prints the path of the node_modules that has this package of tests/node.txt, and `node` itself as `.bin/node`.
# The version is pinned: a contract test that changes under our feet tests nothing.
set -eu
exec bash "$(dirname "$0")/environments" node "${1:?name the package}"
