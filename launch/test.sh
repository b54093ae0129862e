#!/usr/bin/env bash
# Sets up the environment and runs the tests.
# usage: bash launch/test.sh [--parity] [arguments of pytest]
#   --parity   also installs torch and transformers, and runs the comparisons with the original implementations
#              and the six tests that take a minute each (whole trainings: killed five times, of two processes that
#              are killed, in four processes, in two on a bucket, of the two published audio recipes)
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ "${1:-}" = "--parity" ]; then
  shift
  setup_environment "test,parity"
  exec python -m pytest -n 2 --dist loadfile "$@"
fi
setup_environment "test"
exec python -m pytest -n 2 --dist loadfile -m "not parity and not long and not slow" "$@"
