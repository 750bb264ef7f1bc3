#!/bin/sh
# See celery-delay at work: `sh example_project/demo.sh [options of demo.py]`.
#
# Needs a Python 3.10 or newer on x86-64 Linux, and nothing else.  Everything goes into
# ./.venv; the second run starts at once.  Takes its Redis from
#   DELAY_REDIS_URL       a server of yours (the demo removes its keys afterwards)
#   redis-server          on the path, 6.2 or newer, as a child
#   the embedded Redis    as a child; DELAY_REDIS=embedded takes it in any case
# `--broker amqp://…` and `--database postgresql://…` bring in other servers of yours.
set -eu
cd "$(dirname "$0")/.."
. tests/venv.sh

fail() {
    echo "demo.sh: $1" >&2
    exit 1
}

condition=suits
if [ "${DELAY_REDIS:-}" = embedded ] || { [ -z "${DELAY_REDIS_URL:-}" ] && ! has_redis; }; then
    # also where there is a redis-server that is too old
    export DELAY_REDIS=embedded
    condition=suits_embedded
fi
if ! venv_suits "$condition"; then
    # 3.12 is the last Python with an embedded Redis
    pythons="python3 python3.12 python3.11 python3.10 python3.13 python3.14"
    if found=$(find_python "$condition" "$pythons"); then
        make_venv "$found"
    elif find_python suits "$pythons" >/dev/null; then
        fail "no Redis: install redis-server 6.2 or newer, or set DELAY_REDIS_URL
(or install Python 3.10, 3.11 or 3.12 on x86-64 Linux: these have an embedded one)"
    else
        fail "no Python 3.10 or newer with the module venv (Debian: python3-venv)"
    fi
fi
extras=flower,embedded
case " $* " in
*[\ =]postgresql*) extras=$extras,postgres ;;
*[\ =]mysql* | *[\ =]mariadb*) extras=$extras,mysql ;;
esac
install_wheel "$extras"
exec "$python" example_project/demo.py "$@"
