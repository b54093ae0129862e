#!/usr/bin/env bash
# From a fresh clone to a trained any-to-any model and its report, on two CPU cores.
# Safe to interrupt and run again: finished stages are kept and training goes on where it stopped.
# usage: bash launch/quickstart.sh [flags of python -m anygpt_jax.quickstart]
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
setup_environment ""
exec python -m anygpt_jax.quickstart "$@"
