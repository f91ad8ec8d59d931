"""The final results of a run: its selected, last and stage-1 weights and the weights that it started from, tested
alike."""

from __future__ import annotations

from typing import Any

from sdcl import distributed
from sdcl.frame.checkpoints import read_checkpoint, write_json
from sdcl.frame.retrieval import Table, TestSet, average, chance_table, embed_test_set, evaluate, modes
from sdcl.frame.run import Run
from sdcl.models import SDCLModel, build_model
from sdcl.seeds import seed_everything

__all__ = ["final_results", "mean_of_trials"]


def final_results(run: Run, model: SDCLModel, test_set: TestSet) -> dict[str, Any]:
    """Tests a finished run's weights and writes results.json; what is there already is taken as it is.

    Returns:
        The modes' tables of the selected weights at the top level; "last", "stage1" (what stage 2 started from) and
        "start" (before training) in the same shape, "chance", and "epoch" and "selected_by".
    """
    config = run.config
    known = distributed.from_main(run.results)
    if known is not None:
        return known

    def test() -> Table:
        return evaluate(test_set, embed_test_set(model, test_set, config), config, final=True)

    parts: dict[str, Table] = {}
    for name, path in (("best", run.best), ("last", run.last), ("stage1", run.stage1)):
        if path.exists():
            model.load_state_dict(read_checkpoint(path)["model"])
            parts[name] = test()
    seed_everything(config.seed, run.trial, "weights")
    model.load_state_dict(build_model(config.model).state_dict())
    parts["start"] = test()
    results = {
        **parts.pop("best"),
        **parts,
        "chance": chance_table(test_set, config),
        "epoch": run.best_epoch,
        "selected_by": config.select,
    }
    if distributed.is_main():
        write_json(run.results_file, results)
    return results


def mean_of_trials(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The table over RegDB's trials, each trained by itself: mean and deviation, for each of the runs' weights."""
    parts = [name for name in ("rerank", "last", "stage1", "start", "chance") if all(name in r for r in results)]
    return {
        **average([modes(r) for r in results]),
        **{name: average([r[name] for r in results]) for name in parts},
        "trials": len(results),
        **{name: results[0][name] for name in ("selected_by", "rerank_settings") if name in results[0]},
    }
