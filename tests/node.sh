#!/bin/sh
# node.sh PACKAGE@VERSION: installs (once) a package that tests drive, and prints the path of its node_modules.
# The version is pinned: a contract test that changes under our feet tests nothing.
set -eu
package=${1:?name the package}
name=$(printf '%s' "$package" | cksum | cut -d' ' -f1)
folder="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/textnlp-deploy}/node-$name"
if [ ! -f "$folder/ready" ]; then
    command -v npm >/dev/null || { echo "npm is missing" >&2; exit 1; }
    # Without `ready` it is one that broke off while it was made.
    rm -rf "$folder"
    mkdir -p "$folder"
    npm install --prefix "$folder" --no-audit --no-fund --ignore-scripts --loglevel=error "$package" >&2
    touch "$folder/ready"
fi
echo "$folder/node_modules"
