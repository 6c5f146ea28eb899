#!/usr/bin/env bash
# Writes requirements.lock and requirements-dev.lock again from pyproject.toml, the same versions for
# Python 3.11 to 3.14, Linux and macOS. For maintainers: needs uv (pip install uv). Versions in the old
# lock are kept where they still fit; UPGRADE=1 takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .venv/bin/uv)
export UV_CUSTOM_COMPILE_COMMAND="bash launch/lock.sh"
options=(pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest
  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate ${UPGRADE:+--upgrade})
"$uv" "${options[@]}" --output-file requirements.lock pyproject.toml
"$uv" "${options[@]}" --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
