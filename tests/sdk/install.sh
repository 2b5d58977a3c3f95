#!/bin/sh
# Installs the official SDKs, the reference server and the conformance suite into a cache
# folder outside the repository, and prints that folder as the last line of its output. The
# folder is named after the lock files, so a second call has nothing left to do but to copy
# the sources that changed.
#
# WAFFLES_SDK_CACHE  where the folders are kept (default: ~/.cache/waffles/sdk)
# PYTHON             the Python to make the virtual environments with (default: python3)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${WAFFLES_SDK_CACHE:-$HOME/.cache/waffles/sdk}
python=${PYTHON:-python3}
node_folders="ts-v1 ts-v2 everything conformance inspector"
python_folders="py-v1 py-v2"

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

command -v node >/dev/null || fail "node is missing; install Node.js 20 or newer"
command -v npm >/dev/null || fail "npm is missing; install it with Node.js"
command -v "$python" >/dev/null || fail "$python is missing; install Python 3.10 or newer"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"

digest() {
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c1-16
}

key=$({
    for folder in $node_folders; do cat "$here/$folder/package-lock.json"; done
    for folder in $python_folders; do cat "$here/$folder/requirements.txt"; done
    uname -sm
    "$python" -c 'import sys; print(sys.version_info[:2])'
} | digest)
target=$cache/$key
mkdir -p "$target"

# Several tests may call this at once. The lock is released when the process ends.
if command -v flock >/dev/null; then
    exec 9>"$target/.lock"
    flock 9
fi

(cd "$here" && find . -name node_modules -prune -o -type f -print) | while read -r file; do
    cmp -s "$here/$file" "$target/$file" && continue
    mkdir -p "$target/$(dirname "$file")"
    # A test may be reading the file just now, so it is replaced rather than written over.
    cp "$here/$file" "$target/$file.new"
    mv "$target/$file.new" "$target/$file"
done

install_node() {
    cd "$target/$1" && npm ci --no-audit --no-fund
}

install_python() {
    cd "$target/$1" && rm -rf venv && "$python" -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
}

# Runs `install_$1 $2` unless it has succeeded before.
once() {
    [ -e "$target/$2/.installed" ] && return
    if ("install_$1" "$2") >"$target/$2.log" 2>&1; then
        touch "$target/$2/.installed"
    else
        echo "install.sh: $2 failed:" >&2
        tail -n 30 "$target/$2.log" >&2
        return 1
    fi
}

jobs=
for folder in $node_folders; do once node "$folder" & jobs="$jobs $!"; done
for folder in $python_folders; do once python "$folder" & jobs="$jobs $!"; done
failed=
for job in $jobs; do wait "$job" || failed=yes; done
[ -z "$failed" ] || exit 1
echo "$target"
