# Shared by the scripts beside it: saying what is done, and installing what is missing.

# Runs a step under its name and says how long it took.
step() {
  local name=$1 started=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@"
  printf '== %s: %d s\n' "$name" "$((SECONDS - started))"
}

# Installs Debian packages, or says which are missing and how to get them.
install_packages() {
  local sudo=()
  if ! command -v apt-get >/dev/null; then
    echo "Missing: $*. Install them with your system's package manager and run this again." >&2
    return 1
  fi
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      sudo=(sudo -n)
    else
      echo "Missing: $*. Get them with: sudo apt-get install --no-install-recommends $*" >&2
      return 1
    fi
  fi
  echo "Installing: $*"
  export DEBIAN_FRONTEND=noninteractive
  # Test runs start their own Postgres and redis, so the packages' services must not start.
  local policy=/usr/sbin/policy-rc.d made=no
  if [ "$(id -u)" = 0 ] && [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=yes
  fi
  local status=0
  { "${sudo[@]}" apt-get update -qq && "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null; } ||
    status=$?
  [ "$made" = no ] || rm -f "$policy"
  return "$status"
}

need_npm() {
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    install_packages nodejs npm
  fi
}

node_is_new_enough() {
  [ "$(node --version | sed -E 's/^v([0-9]+).*/\1/')" -ge 20 ]
}

# Puts the Node.js that test-deps.sh installed first on PATH, where the system's own is too old.
use_new_node() {
  local dir
  node_is_new_enough && return
  for dir in "$PWD"/tools/node/node_modules/node-linux-*/bin; do
    [ -x "$dir/node" ] && export PATH="$dir:$PATH"
  done
  node_is_new_enough || { echo "Node.js 20 or newer is needed; node is $(node --version)." >&2; return 1; }
}
