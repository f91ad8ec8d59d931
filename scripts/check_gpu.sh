#!/usr/bin/env bash
# Tests and times everything that a GPU is used for, in under ten minutes on one GPU, into one report (Markdown).
# `bash scripts/check_gpu.sh tests steps` runs these parts alone; --help names all. Without a GPU each part says why it
# is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
exec "$PYTHON" scripts/check_gpu.py "$@"
