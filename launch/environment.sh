# Sourced by install.sh, quickstart.sh and test.sh: makes .venv and installs a lock file and this package into it.
#   PYTHON=python3.12 names another interpreter; VENV=FOLDER another place for the environment.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}

fail() { printf '%s\n' "$@" >&2; exit 1; }

supported() { # whether command $1 is a Python that the lock files were tested on
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

make_environment() {
  local python=${PYTHON:-} candidate
  if [ -z "$python" ]; then
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
      if supported "$candidate"; then python=$candidate; break; fi
    done
  fi
  [ -n "$python" ] || fail "Python 3.11 to 3.14 is needed; python3 is: $(python3 --version 2>&1 || echo missing)." \
    "Install one (Debian, Ubuntu: apt install python3 python3-venv) or name one: PYTHON=/path/to/python3.12"
  supported "$python" || fail "PYTHON=$python is not Python 3.11 to 3.14 ($("$python" --version 2>/dev/null | head -n 1))."
  echo "Making $venv with $("$python" --version 2>&1)"
  "$python" -m venv "$venv" || {
    rm -rf "$venv"
    fail "" "This Python cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" \
      "Without root: $python -m venv --without-pip $(printf %q "$venv")" \
      "              curl -sS https://bootstrap.pypa.io/get-pip.py | $(printf %q "$venv/bin/python")     then repeat."
  }
}

install() { # install LOCK: what it lists and this package, unless that is what is there already
  local lock=$1 stamp=$venv/installed.cksum wanted
  [ -x "$venv/bin/python" ] || make_environment
  supported "$venv/bin/python" || fail "$venv holds $("$venv/bin/python" --version 2>&1): remove it (rm -r $venv) and repeat."
  wanted=$(cat "$lock" pyproject.toml | cksum) # sha256sum is not on every Mac
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing from $lock (some minutes the first time)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --use-pep517 -r "$lock"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
    printf '%s\n' "$wanted" > "$stamp"
  fi
}
