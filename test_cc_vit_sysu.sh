#!/usr/bin/env bash
# Tests the best weights of runs/sysu on SYSU-MM01 and prints the published table; further arguments go to test_sdcl.py
# (the last --checkpoint counts, so that another file can be given).
set -euo pipefail
cd "$(dirname "$0")"
. scripts/env.sh
exec "$PYTHON" test_sdcl.py sysu --checkpoint runs/sysu/best.pth "$@"
