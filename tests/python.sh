#!/bin/sh
# python.sh PACKAGE==VERSION…: makes (once) a virtual environment with packages that tests drive, and prints the path of its interpreter.
# The versions are pinned: a contract test that changes under our feet tests nothing.
set -eu
packages=${*:?name the packages}
name=$(printf '%s' "$packages" | cksum | cut -d' ' -f1)
folder="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/textnlp-deploy}/python-$name"
if [ ! -f "$folder/ready" ]; then
    command -v python3 >/dev/null || { echo "python3 is missing" >&2; exit 1; }
    # Without `ready` it is one that broke off while it was made.
    rm -rf "$folder"
    python3 -m venv "$folder" >&2
    # shellcheck disable=SC2086
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check $packages >&2
    touch "$folder/ready"
fi
echo "$folder/bin/python"
