#!/bin/sh
# Installs TextNLP @VERSION@ from this folder only, without a network or package index.
#
#   TEXTNLP_ENGINE      the container engine [docker]; `none` loads no images
#   TEXTNLP_PREFIX      where the program goes [/usr/local]
#   TEXTNLP_MODELS_DIR  where the models go [/opt/textnlp/models]
set -eu
cd "$(dirname "$0")"
engine=${TEXTNLP_ENGINE:-docker}
prefix=${TEXTNLP_PREFIX:-/usr/local}
models=${TEXTNLP_MODELS_DIR:-/opt/textnlp/models}

fail() {
  echo "error: $1" >&2
  echo "hint: $2" >&2
  exit 1
}

echo "Installing TextNLP @VERSION@ from this offline bundle..."

# All checks run before any change.
sha256sum -c SHA256SUMS >/dev/null || fail "a file of this bundle is damaged" "copy the bundle again"
images=no
for image in images/*.tar; do
  [ -e "$image" ] && images=yes
done
if [ "$images" = yes ] && [ "$engine" != none ] && ! command -v "$engine" >/dev/null 2>&1; then
  fail "the container engine \`$engine\` is not installed" \
    "install it, name another one with TEXTNLP_ENGINE, or set TEXTNLP_ENGINE=none to run the program without containers"
fi

if [ "$engine" != none ]; then
  for image in images/*.tar; do
    [ -e "$image" ] || continue
    echo "Loading $image"
    "$engine" load -i "$image"
  done
fi

# From this folder only: `dpkg` and `pip --no-index` use no network.
wheels=no
while IFS= read -r package; do
  case $package in
    bin/*)
      echo "Installing ${package#bin/} into $prefix/bin"
      mkdir -p "$prefix/bin"
      cp "packages/$package" "$prefix/bin/.${package#bin/}.new"
      chmod 0755 "$prefix/bin/.${package#bin/}.new"
      mv -f "$prefix/bin/.${package#bin/}.new" "$prefix/bin/${package#bin/}"
      ;;
    *.deb)
      echo "Installing $package"
      dpkg -i "packages/$package"
      ;;
    *.whl | *.tar.gz) wheels=yes ;;
  esac
done <packages/packages.txt
if [ "$wheels" = yes ]; then
  if [ -f packages/requirements.txt ]; then
    python3 -m pip install --no-index --find-links packages -r packages/requirements.txt
  else
    fail "there are language packages but no packages/requirements.txt" "create the bundle again"
  fi
fi

mkdir -p "$models"
for model in models/*/; do
  [ -d "$model" ] || continue
  name=$(basename "$model")
  echo "Copying the model $name to $models"
  # Beside its place first, so that a half copied model never has a whole one's name.
  rm -rf "$models/.$name.new"
  cp -R "models/$name" "$models/.$name.new"
  rm -rf "${models:?}/$name"
  mv "$models/.$name.new" "$models/$name"
done
cp models/manifest.json "$models/manifest.json"

echo "TextNLP @VERSION@ is installed. Start it with:"
echo "  docker compose -f docker-compose.airgap.yml up -d"
