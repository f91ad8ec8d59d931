#!/usr/bin/env bash
# Runs the tests (minutes, no GPU needed): all of them, or with --fast those that start no whole run (about 90 seconds on
# two cores). Sets up the environment first if needed; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
exec "$PYTHON" -m pytest "$@"
