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
# File by file in up to four processes, one more than there are cores since some tests wait; in the order of the files'
# names (by their number of tests, the long ones would come last). One thread each: more threads than cores are slower.
workers=$("$PYTHON" -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-1}"
exec "$PYTHON" -m pytest --numprocesses "$workers" --dist loadfile --no-loadscope-reorder "$@"
