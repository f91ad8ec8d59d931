#!/usr/bin/env bash
# Runs the tests (minutes, no GPU needed): all of them, or with --fast those that start no whole run. Sets up the
# environment first if needed; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
# File by file on up to four cores, in the order of their names (by their number of tests, the long ones would come
# last).
exec "$PYTHON" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
