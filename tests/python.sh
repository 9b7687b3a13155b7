#!/bin/sh
# python.sh PACKAGE==VERSION…: prints the path of an interpreter that has these packages, which one list in tests/python names.
# The versions are pinned: a contract test that changes under our feet tests nothing.
set -eu
: "${1:?name the packages}"
tests=$(dirname "$0")
for list in "$tests"/python/*.in; do
    found=yes
    for package in "$@"; do
        # Several may come as one argument.
        for package in $package; do
            grep -qxF -- "$package" "$list" || found=no
        done
    done
    [ "$found" = no ] || exec bash "$tests/environments" python "$(basename "$list" .in)"
done
echo "no list in tests/python has all of: $*" >&2
exit 1
