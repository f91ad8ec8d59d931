"""The final results of a run: its selected and last weights, those it started from, and those that its method kept,
tested alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sdcl import distributed
from sdcl.data.sets import SETS
from sdcl.errors import UserError
from sdcl.files import read_json, write_json
from sdcl.frame.checkpoints import load_weights, read_checkpoint
from sdcl.frame.method import Method
from sdcl.frame.progress import result_table
from sdcl.frame.retrieval import (
    Table,
    TestSet,
    average,
    chance_table,
    embed_test_set,
    evaluate,
    modes,
    parts_of,
)
from sdcl.frame.run import Run
from sdcl.settings import RunSettings

__all__ = ["final_results", "finish_trials", "free_name", "mean_of_trials", "trial_numbers"]

SAME_IN_ALL = ("selected_by", "galleries", "rerank_settings", "precision")
"""What the results of several trials have in common."""


def final_results(
    run: Run, model: nn.Module, test_set: TestSet, start: Callable[[], Mapping[str, Tensor]] | None = None
) -> dict[str, Any]:
    """Tests a finished run's weights and writes results.json; what is there already is taken as it is.

    Args:
        start: makes the weights (a state_dict of `model`) that the run began with.

    Returns:
        The modes' tables of the selected weights at the top level; "last", "start" (before training) and the method's
        own parts, each where there are such weights, in the same shape; "chance"; "epoch", "selected_by",
        "galleries" (how the test's were picked) and "provenance" (what made the run).
    """
    known = distributed.from_main(run.results)
    if known is not None:
        return known

    def test() -> Table:
        return evaluate(run.method, test_set, embed_test_set(run.method, model, test_set, run.config), run.config, True)

    parts: dict[str, Table] = {}
    tested: dict[int, Table] = {}  # by epoch: the selected one often is the last one, too
    for name in ("best", "last", *run.method.parts):
        path = run.folder / f"{name}.pth"
        if path.exists():
            checkpoint = read_checkpoint(path)
            epoch = checkpoint["epoch"]
            if epoch not in tested:
                load_weights(model, checkpoint, path)
                tested[epoch] = test()
            parts[name] = tested[epoch]
    if start is not None:
        model.load_state_dict(start())
        parts["start"] = test()
    results = {
        **parts.pop("best"),
        **parts,
        "chance": chance_table(test_set, run.config),
        "epoch": run.best_epoch,
        "selected_by": run.config.select,
        "galleries": test_set.galleries,
        "provenance": run.provenance(),
        **({"unpaired": run.config.unpaired} if run.config.unpaired else {}),
    }
    if distributed.is_main():
        write_json(run.results_file, results)
    return results


def trial_numbers(config: RunSettings) -> list[int]:
    """The trials that a command trains or tests: the one that it names, or all of the data set's; [0] for a set
    without trials."""
    return [config.trial] if config.trial else list(SETS[config.dataset].trials)


def finish_trials(
    method: Method, config: RunSettings, trials: Sequence[int], results: Sequence[dict[str, Any]]
) -> None:
    """Of several trials: prints the table over all of them, the one that is published, and writes it to results.json
    in the folder above theirs."""
    if len(trials) > 1 and distributed.is_main():
        mean = mean_of_trials(results)
        write_json(config.run_dir / "results.json", mean)
        print(f"\nmean over {len(trials)} trials:\n{result_table(mean, method.parts)}\n")
        print(f"{config.run_dir / 'results.json'} holds this table", flush=True)


def mean_of_trials(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table over RegDB's trials, each trained by itself: mean and deviation, for each of the runs' weights."""
    parts = [name for name in parts_of(results[0]) if all(name in r for r in results)]
    return {
        **average([modes(r) for r in results]),
        **{name: average([r[name] for r in results]) for name in parts},
        "trials": len(results),
        **({"images": " ".join(r["images"] for r in results)} if "images" in results[0] else {}),
        **{name: results[0][name] for name in (*SAME_IN_ALL, "provenance") if name in results[0]},
    }


def free_name(usual: Path, results: dict[str, Any]) -> Path:
    """Where a test's table can go without taking the place of another test's: `usual`, or beside it `<name>-2`, …
    where the file of that name is of other images or options."""
    for number in itertools.count(1):
        file = usual.with_stem(f"{usual.stem}-{number}") if number > 1 else usual
        try:
            found = read_json(file) if file.exists() else results
        except UserError:  # damaged: nothing tells what it was
            continue
        if all(found.get(name) == results.get(name) for name in ("images", "trials", *SAME_IN_ALL)):
            return file
    raise AssertionError("numbers do not end")
