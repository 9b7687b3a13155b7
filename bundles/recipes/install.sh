#!/bin/sh
# Installs this bundle on a machine without a network. It needs a POSIX shell, the bundle, and nothing else:
#
#     tar --no-same-owner --no-same-permissions -xf BUNDLE manifest.json manifest.json.minisig SHA256SUMS install.sh bin &&
#       minisign -QVm manifest.json -p KEY.pub | sed 's/.*, //' | sha256sum -c &&
#       grep -E '  (install.sh|bin/.*)$' SHA256SUMS | sha256sum -c &&
#       sh install.sh BUNDLE --trust KEY.pub [flags of `textnlp-deploy bundle install`]
#
# Join volumes for tar: `cat FILE.[0-9][0-9][0-9] | tar` with the same options, and `-xf -`. BUNDLE of the last line is FILE.001 then.
#
# The lines before the last verify this script and the program. Without them `--trust` proves nothing on a first install: the
# script and the program that check the key come from the file that is checked. A site that has the program uses its own.
set -eu

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$1" >&2
    printf 'hint: %s\n' "$2" >&2
    exit 2
}

case "${1:-}" in
    '' | -h | --help)
        say "usage: sh install.sh BUNDLE [--env NAME] [--root DIR] [--user NAME] [--trust KEY.pub] [--forget-trust] [--downgrade] [--yes]"
        say "BUNDLE is the bundle file, its first volume (FILE.001) or their name without a number (FILE), or - for standard input."
        [ -n "${1:-}" ] && exit 0
        exit 2
        ;;
esac
bundle=$1
shift

root=${TEXTNLP_ROOT:-/opt/textnlp}
before=
for flag in "$@"; do
    [ "$before" = --root ] && root=$flag
    case "$flag" in --root=*) root=${flag#--root=} ;; esac
    before=$flag
done
if [ -x "$root/bin/textnlp-deploy" ]; then
    # A program of other users would run with the rights of this one.
    listed=$(ls -ldnL "$root")
    case "$listed" in ?????w* | ????????w*) owner=everyone ;; *) owner=$(printf '%s\n' "$listed" | sed 's/^[^ ]* *[0-9]* *\([0-9]*\) .*/\1/') ;; esac
    if [ "$owner" != 0 ] && [ "$owner" != "$(id -u)" ]; then
        fail "other users can replace the program in $root" "use a folder that belongs to you or to root, and that only its owner can write to: --root DIR"
    fi
    say "Installing $bundle with the program of this site: $("$root/bin/textnlp-deploy" --version)"
    exec "$root/bin/textnlp-deploy" bundle install "$bundle" "$@"
fi

case "$(uname -s)-$(uname -m)" in
    Linux-x86_64 | Linux-amd64) platform=linux-amd64 ;;
    Linux-aarch64 | Linux-arm64) platform=linux-arm64 ;;
    *) fail "this machine is $(uname -s) on $(uname -m), and the bundle has no program for it" "install on a Linux machine, x86-64 or ARM64" ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
program=$here/bin/$platform/textnlp-deploy
if [ ! -f "$program" ]; then
    file=${bundle%.001}
    extract="tar --no-same-owner --no-same-permissions -xf $bundle"
    if [ "$file" != "$bundle" ] || [ ! -f "$file" ] && [ -f "$file.001" ]; then
        extract="cat $file.[0-9][0-9][0-9] | tar --no-same-owner --no-same-permissions -xf -"
    fi
    fail "the program is missing next to this script: bin/$platform/textnlp-deploy" "extract it from the bundle first: $extract install.sh bin"
fi
# A file that was added to `bin` is not in the sums.
if [ -f "$here/SHA256SUMS" ] && ! (cd "$here" && grep -F "  bin/$platform/textnlp-deploy" SHA256SUMS | sha256sum -c) >/dev/null 2>&1; then
    fail "bin/$platform/textnlp-deploy is not the program of SHA256SUMS" "extract the bundle again, into an empty folder"
fi
if [ ! -x "$program" ]; then
    chmod 0755 "$program" || fail "$program cannot be made executable" "copy install.sh and bin/ to a folder that you own"
fi
if [ "$bundle" != "-" ] && [ ! -f "$bundle" ] && [ ! -f "$bundle.001" ]; then
    fail "$bundle does not exist" "give the path of the bundle file, or of its first volume"
fi

say "Installing $bundle with $("$program" --version)"
exec "$program" bundle install "$bundle" "$@"
