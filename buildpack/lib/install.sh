# What both kinds of buildpack do; sourced, not run. HERE is the buildpack's directory.
# shellcheck shell=bash

say() { printf -- '-----> %s\n' "$*"; }
detail() { printf '       %s\n' "$*"; }
fail() {
  printf ' !     %s\n' "$@" >&2
  exit 1
}

# The value of the variable $2: a file of that name in the directory $1, as platforms hand them over, or the
# environment's.
setting() {
  if [ -n "$1" ] && [ -f "$1/$2" ]; then
    cat "$1/$2"
  else
    printf '%s' "${!2:-}"
  fi
}

# Puts the program into $1/bin. It comes from the first of these that there is:
#   BUILD_TIDEGATE_FILE   a file on the machine that builds
#   BUILD_TIDEGATE_URL    an address; what is there must have the checksum BUILD_TIDEGATE_SHA256
#   vendor/tidegate       in this buildpack, where bin/package puts it
install_program() {
  local target=$1 settings=$2 file url
  file=$(setting "$settings" BUILD_TIDEGATE_FILE)
  url=$(setting "$settings" BUILD_TIDEGATE_URL)
  mkdir -p "$target/bin"
  rm -f "$target/bin/tidegate"
  if [ -n "$file" ]; then
    [ -f "$file" ] || fail "BUILD_TIDEGATE_FILE names no file: $file"
    cp "$file" "$target/bin/tidegate"
  elif [ -n "$url" ]; then
    fetch "$url" "$(setting "$settings" BUILD_TIDEGATE_SHA256)" "$target/bin/tidegate"
  elif [ -f "$HERE/vendor/tidegate" ]; then
    cp "$HERE/vendor/tidegate" "$target/bin/tidegate"
  else
    fail "There is no tidegate in this buildpack." \
      "Use the archive that bin/package makes, or set BUILD_TIDEGATE_URL and BUILD_TIDEGATE_SHA256."
  fi
  chmod 755 "$target/bin/tidegate"
  local version
  version=$("$target/bin/tidegate" --version) ||
    fail "tidegate does not run here: is it built for $(uname -m), and is the system's glibc 2.34 or newer?"
  detail "$version"
}

# Fetches $1 to $3 if its SHA256 is $2.
fetch() {
  local draft=$3.new
  # An address may hold a token: it is not told.
  [ -n "$2" ] || fail "BUILD_TIDEGATE_URL is set, and BUILD_TIDEGATE_SHA256 is not: set both."
  curl --fail --silent --show-error --location --retry 3 --max-time 300 --output "$draft" "$1" ||
    fail "What BUILD_TIDEGATE_URL names can't be fetched."
  if ! printf '%s  %s\n' "$2" "$draft" | sha256sum --check --status; then
    rm -f "$draft"
    fail "What BUILD_TIDEGATE_URL names does not have the checksum BUILD_TIDEGATE_SHA256."
  fi
  mv "$draft" "$3"
}

# Puts what reads the pgbouncer buildpack's variables into $1/lib.
install_translation() {
  mkdir -p "$1/lib"
  cp "$HERE/lib/from-pgbouncer" "$1/lib/"
  chmod +x "$1/lib/from-pgbouncer"
}

# Puts the commands that Procfiles of the pgbouncer buildpack name into $1/bin, unless there are others already.
install_shims() {
  local shim
  mkdir -p "$1/bin"
  for shim in start-pgbouncer start-pgbouncer-stunnel; do
    if [ -e "$1/bin/$shim" ] && ! cmp -s "$HERE/lib/start-pgbouncer" "$1/bin/$shim"; then
      detail "bin/$shim is there already, and stays: is the pgbouncer buildpack still in use? Remove it."
      continue
    fi
    cp "$HERE/lib/start-pgbouncer" "$1/bin/$shim"
    chmod +x "$1/bin/$shim"
  done
}
