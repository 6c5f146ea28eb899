#!/usr/bin/env bash
# Installs the test extras into .venv and runs style, types and tests. Arguments go to pytest:
#   bash launch/test.sh [--all | -m slow | tests/unit | -k name …]        # --all: the slow ones too
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements-dev.lock
export JAX_PLATFORMS=cpu
if [ "${1:-}" = --all ]; then
  shift
  set -- -m "slow or not slow" "$@"
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
# Types are checked while the tests run, and told at the end.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
"$venv/bin/mypy" >"$types" 2>&1 &
status=0
# Two processes at most: each takes up to 4.5 GB. A file's tests stay together and share what they make.
"$venv/bin/python" -m pytest --numprocesses=auto --maxprocesses=2 --dist=loadfile "$@" || status=$?
wait $! || status=1
echo "mypy: $(cat "$types")"
exit "$status"
