#!/usr/bin/env bash
# Sees to it that what the tests start is there: Postgres, redis, Node.js 20, Python 3.10 with venv.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

missing=()
has_postgres() {
  command -v initdb >/dev/null && command -v postgres >/dev/null && return
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null
}
has_postgres || missing+=(postgresql)
command -v redis-server >/dev/null || missing+=(redis-server)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then
  install_packages "${missing[@]}"
fi
has_postgres || { echo "Postgres is still missing: no initdb on PATH or under /usr/lib/postgresql." >&2; exit 1; }

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  { echo "The client SDKs need Python 3.10 or newer; python3 is $(python3 --version)." >&2; exit 1; }
node_is_new_enough || npm ci --prefix tools/node --no-audit --no-fund --loglevel=error
