#!/usr/bin/env bash
# The main job on embedded data: draws people seen by visible and infrared cameras, trains SDCL on them without labels,
# tests cross-modality retrieval and makes a report. Minutes on two CPU cores. Sets up the environment first if needed;
# repeating it goes on where it stopped. Further arguments go to train_sdcl.py, for example --run-dir runs/other --seed 2.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
run=runs/demo
for ((i = 1; i < $#; i++)); do
    if [ "${!i}" = --run-dir ]; then next=$((i + 1)) && run=${!next}; fi
done
"$PYTHON" train_sdcl.py demo --resume auto "$@"
exec "$PYTHON" scripts/report.py "$run"
