"""Tests SDCL weights by the published protocols and prints the published table.

    python test_sdcl.py sysu --checkpoint runs/sysu/best.pth     all-search and indoor-search, mean of 10 galleries
    python test_sdcl.py regdb --checkpoint runs/regdb            the trials' best.pth, both directions, their mean
    python test_sdcl.py folder --checkpoint runs/mine/best.pth   your own images, infrared against visible and back
    python test_sdcl.py demo --checkpoint runs/demo/best.pth     the synthetic people

A checkpoint of the published implementation works as well as one of this project. The table also goes to a JSON file.
--shots 10 tests SYSU-MM01 multi-shot, --rerank with re-ranking too; --cache-features keeps the embeddings.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sdcl import distributed
from sdcl.config import Config
from sdcl.data.sets import SETS
from sdcl.data.training_set import training_fingerprint
from sdcl.errors import UserError, run_program
from sdcl.frame.checkpoints import is_own_format, read_checkpoint, write_json
from sdcl.frame.cli import TestOptions, parse_test
from sdcl.frame.embedding_cache import cache_file, cached_embeddings
from sdcl.frame.guards import out_of_memory_explained
from sdcl.frame.progress import Progress, result_table
from sdcl.frame.results import mean_of_trials
from sdcl.frame.retrieval import chance_table, embed_test_set, evaluate, load_test_set
from sdcl.models import build_model, load_checkpoint
from sdcl.rerank import rerank
from sdcl.seeds import use_deterministic_kernels


def test(options: TestOptions, path: Path, trial: int, device: torch.device) -> dict[str, Any]:
    """The tables of one checkpoint: of a RegDB trial's lists, or of a set without trials (trial 0)."""
    progress = Progress(options.config, trial)
    config = adopt(options.config, path, trial, progress)
    test_set = load_test_set(config, trial, options.shots)
    model = build_model(config.model).to(device)
    load_checkpoint(model, path)
    progress.say(f"{path}: testing on {config.data_dir}{f', trial {trial}' if trial else ''}")
    if options.cache_features:
        file = cache_file(path, options.variant)
        embeddings = cached_embeddings(file, path, model, test_set, config, progress.bar, progress.say)
    else:
        embeddings = embed_test_set(model, test_set, config, progress.bar)
    results: dict[str, Any] = {**evaluate(test_set, embeddings, config, final=True)}
    if options.rerank:
        settings: dict[str, Any] = {"k1": options.rerank_k1, "k2": options.rerank_k2, "weight": options.rerank_weight}
        again = evaluate(test_set, embeddings, config, final=True, similarity=partial(rerank, **settings))
        results |= {"rerank": again, "rerank_settings": settings}
    return {**results, "chance": chance_table(test_set, config), "checkpoint": str(path)}


def adopt(config: Config, path: Path, trial: int, progress: Progress) -> Config:
    """The settings with the network that the checkpoint was trained with; checks that trial and data are its own.

    A checkpoint of the published implementation says nothing of these: the preset's network stands.
    """
    if not is_own_format(path):
        return dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=None))
    saved = read_checkpoint(path)
    if saved["trial"] != trial:
        right = f"Test it with: regdb --trial {saved['trial']}" if saved["trial"] else "Choose the preset of its data"
        raise UserError(
            f"{path} was trained on {_named(saved['trial'])}, not on {_named(trial)}: the numbers would mean nothing, "
            f"since it has seen identities that it would be tested on. {right}"
        )
    try:
        found = training_fingerprint(config, trial)
        if found != saved["fingerprint"]:
            progress.say(
                f"warning: {path} was trained on other images (fingerprint {saved['fingerprint']}) than those in "
                f"{config.data_dir} ({found})"
            )
    except UserError:
        progress.say(f"note: no prepared training images in {config.data_dir} to compare with those of the checkpoint")
    trained = Config.from_json(saved["config"], path)
    network = dataclasses.replace(trained.model, pretrained=None)
    return dataclasses.replace(config, model=network, shallow=trained.shallow)


def _named(trial: int) -> str:
    return f"RegDB's trial {trial}" if trial else "a set without trials"


def checkpoints(config: Config, path: Path) -> list[tuple[int, Path]]:
    """Trials and their weights: the file itself, or each trial-<n>/best.pth of a RegDB run's folder."""
    trials = SETS[config.dataset].trials
    if path.is_file():
        if len(trials) == 1:
            return [(0, path)]
        if config.trial is None and not is_own_format(path):
            raise UserError(f"which of RegDB's ten trials was {path} trained on? Say so with --trial")
        return [(config.trial or read_checkpoint(path)["trial"], path)]
    if not path.exists():
        raise UserError(
            f"{path} does not exist: train first (the run folder then holds best.pth), or give another --checkpoint"
        )
    found = {t: path / f"trial-{t}" / "best.pth" for t in ([config.trial] if config.trial else trials)}
    missing = [t for t, file in found.items() if not file.is_file()]
    if len(trials) == 1:
        raise UserError(f"{path} is a folder: give a checkpoint file, such as {path / 'best.pth'}")
    if len(missing) == len(found):
        raise UserError(f"{path} holds no trial-<n>/best.pth: train first, or give a checkpoint file and its --trial")
    if missing:
        absent, others = ", ".join(map(str, missing)), len(found) - len(missing)
        print(f"note: no weights of trial {absent}: the mean is over the other {others}", file=sys.stderr)
    return [(t, file) for t, file in found.items() if t not in missing]


def main(arguments: list[str]) -> None:
    options = parse_test(arguments, __doc__ or "")
    config = options.config
    use_deterministic_kernels(config.deterministic)
    device = distributed.start()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    try:
        files = checkpoints(config, options.checkpoint)
        with out_of_memory_explained(config):
            tables = [test(options, path, trial, device) for trial, path in files]
        results = tables[0] if len(tables) == 1 else mean_of_trials(tables)
        if distributed.is_main():
            print(f"\n{result_table(results)}\n")
            beside = options.checkpoint if options.checkpoint.is_dir() else options.checkpoint.parent
            output = options.output or beside / f"test-{options.checkpoint.stem}{options.variant}.json"
            write_json(output, results)
            print(f"{output} holds this table")
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
