#!/usr/bin/env bash
# Runs the tests (minutes, no GPU needed). Sets up the environment first if needed; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
exec "$PYTHON" -m pytest "$@"
