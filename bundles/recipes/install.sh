#!/bin/sh
# Installs this bundle on a machine without a network. It needs a POSIX shell, the bundle, and nothing else:
#
#     tar -xf BUNDLE install.sh bin
#     sh install.sh BUNDLE [--trust KEY.pub] [flags of `textnlp-deploy bundle install`]
#
# The program verifies every byte of the bundle before it uses any, with KEY.pub if it is given.
set -eu

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$1" >&2
    printf 'hint: %s\n' "$2" >&2
    exit 2
}

case "${1:-}" in
    '' | -h | --help)
        say "usage: sh install.sh BUNDLE [--env NAME] [--root DIR] [--trust KEY.pub] [--yes]"
        say "BUNDLE is the bundle file, its first volume (FILE.001), or - for standard input."
        [ -n "${1:-}" ] && exit 0
        exit 2
        ;;
esac
bundle=$1
shift

case "$(uname -s)-$(uname -m)" in
    Linux-x86_64 | Linux-amd64) platform=linux-amd64 ;;
    Linux-aarch64 | Linux-arm64) platform=linux-arm64 ;;
    *) fail "this machine is $(uname -s) on $(uname -m), and the bundle has no program for it" "install on a Linux machine, x86-64 or ARM64" ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
program=$here/bin/$platform/textnlp-deploy
if [ ! -f "$program" ]; then
    fail "the program is missing next to this script: bin/$platform/textnlp-deploy" "extract it from the bundle first: tar -xf $bundle install.sh bin"
fi
if [ ! -x "$program" ]; then
    chmod 0755 "$program" || fail "$program cannot be made executable" "copy install.sh and bin/ to a folder that you own"
fi
if [ "$bundle" != "-" ] && [ ! -f "$bundle" ]; then
    fail "$bundle does not exist" "give the path of the bundle file, or of its first volume"
fi

say "Installing $bundle with $("$program" --version)"
exec "$program" bundle install "$bundle" "$@"
