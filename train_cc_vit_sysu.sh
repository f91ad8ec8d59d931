#!/usr/bin/env bash
# Trains SDCL on SYSU-MM01 with the published settings; further arguments go to train_sdcl.py.
# One process uses the GPUs that it sees; for more: torchrun --nproc-per-node 2 train_sdcl.py sysu
set -euo pipefail
cd "$(dirname "$0")"
. scripts/env.sh
exec "$PYTHON" train_sdcl.py sysu "$@"
