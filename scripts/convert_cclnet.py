"""Writes a CCLNet run as a checkpoint that the published implementation loads.

    python scripts/convert_cclnet.py runs/cclnet-sysu published.pth

Image network and test results are those of the run's best.pth, learned vectors those of its prompts.pth, the text
encoder is that of the CLIP file that the run's settings name. Of the published curve of 20 ranks the log holds ranks 1,
5, 10 and 20; the others are NaN. The other way there is nothing to convert: the test program reads published files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import numpy as np
import torch

from sdcl.cclnet.handover import read_handover  # noqa: E402
from sdcl.cclnet.method import initial_model  # noqa: E402
from sdcl.cclnet.settings import Config  # noqa: E402
from sdcl.cclnet.weights import published_state, save_published  # noqa: E402
from sdcl.errors import UserError, run_program  # noqa: E402
from sdcl.frame.checkpoints import load_weights, read_checkpoint  # noqa: E402
from sdcl.frame.retrieval import modes  # noqa: E402
from sdcl.frame.run import read_log  # noqa: E402


def convert(run: Path, target: Path) -> str:
    """Writes the file; returns what it did."""
    best = read_checkpoint(run / "best.pth")
    if best["method"] != "cclnet":
        raise UserError(f"{run} is a run of another method ({best['method']})")
    config = Config.from_json(best["config"], run / "best.pth")
    model = initial_model(config, best["trial"])
    load_weights(model.image, best, run / "best.pth")
    handover = read_handover(run / "prompts.pth")
    model.language.restart(*(len(context) for context in handover.contexts.values()))
    with torch.no_grad():
        for modality, context in handover.contexts.items():
            model.language.sentences(modality).context.copy_(context)

    line = next(entry for entry in read_log(run / "log.jsonl") if entry["epoch"] == best["epoch"])
    table = next(iter(modes(line).values()), {})
    cmc = np.full(20, np.nan)
    for rank in (1, 5, 10, 20):
        cmc[rank - 1] = table.get(f"rank{rank}", np.nan)
    number = config.at(best["epoch"]).number
    save_published(model, target, number, cmc, table.get("mAP", np.nan), table.get("mINP", np.nan))
    return f"{len(published_state(model))} tensors in the published format, epoch {number} of its stage"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run that has finished stage 1")
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write; an existing one is replaced")
    a = parser.parse_args()
    print(f"{a.target}: {convert(a.run, a.target)}")


if __name__ == "__main__":
    run_program(main)
