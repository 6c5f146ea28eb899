#!/usr/bin/env bash
# Makes .venv and installs the locked packages and this package into it; nothing is run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install requirements.lock
echo "Next: source $venv/bin/activate"
