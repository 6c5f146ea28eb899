#!/usr/bin/env bash
# From nothing to a table of eight tasks: makes .venv, installs the locked packages, runs the main job.
#   bash launch/quickstart.sh [--config.seed=1 …]        further arguments go to wam_jax.main
#   PRESET=small bash launch/quickstart.sh               another preset (demo, small, paper, auto)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.lock
exec "$venv/bin/python" -m wam_jax.main --config="experiments/calvin_wam.py:${PRESET:-demo}" "$@"
