#!/usr/bin/env bash
# Trains SDCL on RegDB with the published settings; all ten trials, or one with --trial 3; further arguments go to train_sdcl.py.
# One process uses the GPUs that it sees; for more: torchrun --nproc-per-node 2 train_sdcl.py regdb
set -euo pipefail
cd "$(dirname "$0")"
. scripts/env.sh
exec "$PYTHON" train_sdcl.py regdb "$@"
