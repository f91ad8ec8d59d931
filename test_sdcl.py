"""Tests weights by the published protocols and prints the published table; the checkpoint says of which method.

    python test_sdcl.py sysu --checkpoint runs/sysu/best.pth     all-search and indoor-search, mean of 10 galleries
    python test_sdcl.py regdb --checkpoint runs/regdb            the trials' best.pth, both directions, their mean
    python test_sdcl.py folder --checkpoint runs/mine/best.pth   your own images, infrared against visible and back
    python test_sdcl.py demo --checkpoint runs/demo/best.pth     the synthetic people

A checkpoint of SDCL's published implementation works as well; --method names the method of another foreign file. The
table also goes to a JSON file. --shots 10 tests SYSU-MM01 multi-shot, --rerank with re-ranking too; --cache-features
keeps the embeddings.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import torch

from sdcl import distributed
from sdcl.data.sets import SETS
from sdcl.data.training_set import training_fingerprint
from sdcl.errors import UserError, run_program
from sdcl.files import check_writable, write_json
from sdcl.frame.checkpoints import own_checkpoint
from sdcl.frame.cli import TestOptions, given, parse_test
from sdcl.frame.embedding_cache import cache_file, cached_embeddings
from sdcl.frame.guards import out_of_memory_explained
from sdcl.frame.method import Method, load_network, method_of
from sdcl.frame.progress import Progress, result_table
from sdcl.frame.results import free_name, mean_of_trials, trial_numbers
from sdcl.frame.retrieval import chance_table, embed_test_set, evaluate, fingerprint, load_test_set
from sdcl.rerank import rerank
from sdcl.settings import RunSettings


def test(method: Method, options: TestOptions[Any], path: Path, trial: int, device: torch.device) -> dict[str, Any]:
    """The tables of one checkpoint: of a RegDB trial's lists, or of a set without trials (trial 0)."""
    progress = Progress(options.config, trial)
    config = adopt(method, options.config, path, trial, progress)
    test_set = load_test_set(config, trial, options.shots)
    model = load_network(method, path, config, device)
    progress.say(
        f"{path} ({method.title}): testing on {config.data_dir}{f', trial {trial}' if trial else ''}, {device}"
    )
    if options.cache_features:
        file = cache_file(path, options.variant)
        embeddings = cached_embeddings(file, path, method, model, test_set, config, progress.bar, progress.say)
    else:
        embeddings = embed_test_set(method, model, test_set, config, progress.bar)
    results: dict[str, Any] = {**evaluate(method, test_set, embeddings, config, final=True)}
    if options.rerank:
        settings: dict[str, Any] = {"k1": options.rerank_k1, "k2": options.rerank_k2, "weight": options.rerank_weight}
        again = evaluate(method, test_set, embeddings, config, final=True, similarity=partial(rerank, **settings))
        results |= {"rerank": again, "rerank_settings": settings}
    results |= {"chance": chance_table(test_set, config), "galleries": test_set.galleries}
    results |= {"images": fingerprint(test_set), "precision": config.precision}
    return {**results, "checkpoint": str(path), "method": method.name}


def adopt(method: Method, config: RunSettings, path: Path, trial: int, progress: Progress) -> RunSettings:
    """The settings with the network that the checkpoint was trained with; checks that trial and data are its own.

    A checkpoint of another format says nothing of these: the preset's network stands.
    """
    saved = own_checkpoint(path)
    if saved is None:
        return config
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
    trained = method.settings.from_json(saved["config"], path)
    return dataclasses.replace(config, **{name: getattr(trained, name) for name in trained.OF_NETWORK})


def _named(trial: int) -> str:
    return f"RegDB's trial {trial}" if trial else "a set without trials"


def checkpoints(config: RunSettings, path: Path) -> list[tuple[int, Path]]:
    """Trials and their weights: the file itself, or each trial-<n>/best.pth of a RegDB run's folder."""
    several = len(SETS[config.dataset].trials) > 1
    if path.is_file():
        if not several:
            return [(0, path)]
        trial = config.trial or (own_checkpoint(path) or {}).get("trial")
        if trial is None:
            raise UserError(f"which of RegDB's ten trials was {path} trained on? Say so with --trial")
        if trial == 0:
            raise UserError(f"{path} was trained on {_named(0)}, not on RegDB. Choose the preset of its data")
        return [(trial, path)]
    if not path.exists():
        raise UserError(
            f"{path} does not exist: train first (the run folder then holds best.pth), or give another --checkpoint"
        )
    if not several:
        raise UserError(f"{path} is a folder: give a checkpoint file, such as {path / 'best.pth'}")
    found = {t: path / f"trial-{t}" / "best.pth" for t in trial_numbers(config)}
    missing = [t for t, file in found.items() if not file.is_file()]
    if len(missing) == len(found):
        raise UserError(f"{path} holds no trial-<n>/best.pth: train first, or give a checkpoint file and its --trial")
    unfinished = [t for t, file in found.items() if t not in missing and not (file.parent / "results.json").is_file()]
    finished = [(t, file) for t, file in found.items() if t not in missing and t not in unfinished]
    if not finished:
        raise UserError(f"no trial in {path} is finished: wait for one, or give the best.pth of one as --checkpoint")
    for trials, what in ((missing, "no weights of"), (unfinished, "not finished, so left out:")):
        if trials:
            names = ", ".join(map(str, trials))
            print(f"note: {what} trial {names}; the mean is over the other {len(finished)}", file=sys.stderr)
    return finished


def main(arguments: list[str]) -> None:
    named, checkpoint = given(arguments, "--method"), Path(given(arguments, "--checkpoint") or "")
    first = next((f for f in (checkpoint, *sorted(checkpoint.glob("trial-*/best.pth"))) if f.is_file()), checkpoint)
    method = method_of(first, otherwise=named or "sdcl")
    options = parse_test(arguments, __doc__ or "", method.presets)
    config = options.config
    if options.output is not None:
        check_writable(options.output)
    device = distributed.start(config)
    try:
        files = checkpoints(config, options.checkpoint)
        with out_of_memory_explained(config):
            tables = [test(method, options, path, trial, device) for trial, path in files]
        results = tables[0] if len(tables) == 1 else mean_of_trials(tables)
        if distributed.is_main():
            print(f"\n{result_table(results, method.parts)}\n")
            beside = options.checkpoint if options.checkpoint.is_dir() else options.checkpoint.parent
            reranked = "-rerank" if options.rerank else ""
            usual = beside / f"test-{options.checkpoint.stem}{options.variant}{reranked}.json"
            output = options.output or free_name(usual, results)
            write_json(output, results)
            kept = f" ({usual.name}, that of another test, is kept)" if not options.output and output != usual else ""
            print(f"{output} holds this table{kept}")
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
