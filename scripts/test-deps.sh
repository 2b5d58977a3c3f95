#!/usr/bin/env bash
# Sees to it that what the tests start is there: Postgres, redis, Node.js, Python with venv.
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
