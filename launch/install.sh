#!/usr/bin/env bash
# Makes .venv and installs the locked packages and this package into it; nothing is run.
#   bash launch/install.sh               for the CPU
#   bash launch/install.sh cuda          for an NVIDIA GPU as well; tpu: for a TPU
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case "$*" in
  "" | cuda | tpu) ;;
  *) fail "Arguments not understood: $*. Usage: bash launch/install.sh [cuda|tpu]" ;;
esac
install requirements.lock
# JAX is there in the locked version already, and brings its plugin in the same one.
[ $# = 0 ] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[$1]"
echo "Next: source $(printf %q "$venv")/bin/activate"
