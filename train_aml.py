"""Trains AML: two networks on a pseudo-labelled source, then on an unlabelled target; network 1 is tested.

    python train_aml.py sysu                       SYSU-MM01 in data/sysu, source in data/market1501_gen
    python train_aml.py sysu02                     SYSU-MM02 in data/sysu02
    python train_aml.py regdb --trial 1            one of RegDB's ten splits; all ten without --trial
    python train_aml.py demo                       a small ResNet on drawn people, minutes on a laptop
    python train_aml.py sysu --phase target_dbscan --start-from runs/aml-sysu/source_mutual.pth --run-dir runs/again
    python train_aml.py sysu --dry-run             step times, memory and hours, before a run starts

Four phases follow on each other: source, source_mutual, target_dbscan (not on RegDB), target_kmeans. The run folder
then holds config.json, log.jsonl (a line a part), last.pth, best.pth, results.json, and <phase>.pth for each phase.
The loop in `train` is the method: phases, their parts of some hundred steps, tests and saves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sdcl.startup  # noqa: F401  # first: it tells what is missing
from sdcl.aml.presets import PRESETS
from sdcl.frame.cli import answer_early, how_to_go_on, parse_training

if __name__ == "__main__":
    answer_early(__doc__, PRESETS)  # --help need not wait for what follows

import torch

from sdcl import distributed
from sdcl.aml.images import Images, load_images
from sdcl.aml.method import METHOD
from sdcl.aml.rehearsal import rehearse
from sdcl.aml.settings import Config
from sdcl.aml.source import SourcePhase
from sdcl.aml.start import beginning, enter, make_classifiers, save_phase
from sdcl.aml.target import TargetPhase
from sdcl.data.cache import build_caches
from sdcl.errors import UserError, run_program
from sdcl.frame.dry_run import announce
from sdcl.frame.guards import out_of_memory_explained
from sdcl.frame.progress import CLUSTERS_LEGEND, Progress, result_table
from sdcl.frame.results import final_results, finish_trials, trial_numbers
from sdcl.frame.retrieval import TestSet, embed_test_set, evaluate, load_test_set
from sdcl.frame.run import Clock, Run


def train(config: Config, trial: int, images: Images, test_set: TestSet, device: torch.device) -> dict[str, Any]:
    """One run: one RegDB trial, or a set without trials (trial 0). Returns its final results."""
    progress = Progress(config, trial)
    progress.start(images.target, test_set, device, notes(config, images))

    run = Run(folder_of(config, trial), METHOD, config, trial, images.target.fingerprint)
    pair, weights = beginning(config, trial, run.folder)
    saved = run.restore(model=pair.first, second=pair.second)  # of the part before, where the run goes on
    if saved.get("source", images.source_fingerprint) != images.source_fingerprint:
        raise UserError(
            f"the source in {config.source_dir}, or its labels, are not those that the run in {run.folder} started "
            "with: restore them, or start afresh in another --run-dir"
        )
    weights = saved.get("classifiers", weights)
    pair.to(device)

    for name in config.phases:
        parts = [(n, part) for n, part in enumerate(config.parts) if part.phase == name and n >= run.next_epoch]
        if not parts:
            continue  # done before the run was stopped
        if parts[0][1].first == 0:
            enter(name, pair, config, trial)
        settings, key = config.at(name), (config.seed, trial, name)
        phase: SourcePhase | TargetPhase
        if images.source is not None and settings.stage == 1:  # section 5
            classifiers = make_classifiers(pair, images.source.classes, weights, config, trial)
            phase = SourcePhase(pair, classifiers, images.source, settings, config, key)
        else:  # sections 6 and 7
            phase = TargetPhase(pair, images.target.records, settings, config, key, progress.bar)
        if parts[0][1].first > 0:
            phase.restore(saved)

        for number, part in parts:
            clock, table = Clock(), {}
            losses = phase.train(part, number, clock, progress.losses)
            if part.test:
                with clock("test"):
                    tests = embed_test_set(METHOD, pair.first, test_set, config, progress.bar)
                    table = evaluate(METHOD, test_set, tests, config, final=False)
            state = phase.state()
            weights = state.get("classifiers", [])
            if part.last == settings.iterations:
                save_phase(run, name, number, pair, weights)
            line = {"epoch": number, "stage": settings.stage, "phase": name, "steps": part.last, **losses}
            line |= {"seconds": clock.seconds, **table}
            rank1 = next(iter(table.values()))["rank1"] if table else None
            state |= {"second": pair.second, "source": images.source_fingerprint}
            selected = run.save(line, rank1, model=pair.first, **state)
            progress.epoch(line, selected and part.test, pairs_note(line))

    start = beginning(config, trial, run.folder)[0].first
    results = final_results(run, pair.first, test_set, start.state_dict)
    progress.say(f"\n{result_table(results, METHOD.parts)}\n")
    progress.say(f"{run.folder}/results.json holds this table; best.pth is part {run.best_epoch}, by {config.select}")
    run.close()
    return results


def folder_of(config: Config, trial: int) -> Path:
    return config.run_dir / f"trial-{trial}" if trial else config.run_dir


def for_trial(config: Config, trials: Sequence[int], trial: int) -> Config:
    """Settings of one of several trials: the source phases do not depend on the trial, so the first one's weights
    serve the others too."""
    first = trials[0]
    if trial == first or config.phase is not None or config.until in ("source", "source_mutual"):
        return config
    return replace(config, phase="target_kmeans", start_from=folder_of(config, first) / "source_mutual.pth")


def notes(config: Config, images: Images) -> list[str]:
    """What the first lines of a run say of its source, networks and labels."""
    lines = [f"phases: {', '.join(config.phases)}; network 1 is tested, by Euclidean distance of features divided by "
             f"their {'absolute sum' if config.model.feature_norm == 1 else 'length'}"]  # fmt: skip
    if images.source is not None:
        lines.append(f"source: {config.source_dir}\n{images.source.report().table()}")
    return [*lines, CLUSTERS_LEGEND] if config.truth else lines


def pairs_note(line: dict[str, Any]) -> str:
    """The matched clusters of the part's last clustering, if it had one."""
    if "pairs" not in line:
        return ""
    right = line.get("association_accuracy")
    known = "" if right is None else f", {100 * right:.0f} % of visible rows right"
    return f"{line['pairs']} pairs at {line['pair_distance']:.2f}{known}"


def main(arguments: list[str]) -> None:
    options = parse_training(arguments, __doc__ or "", PRESETS)
    config = options.config
    device = distributed.start(config)
    try:
        if distributed.world() > 1:
            raise UserError("AML trains on one GPU, as its published runs did: start it without torchrun")
        trials = trial_numbers(config)
        # All trials' images are found and read before the first one trains: a broken file of the last is known now.
        sets = []
        for trial in trials:
            own = for_trial(config, trials, trial)
            sets.append((own, trial, load_images(own, trial), load_test_set(own, trial)))
        for own, _, images, test_set in sets:
            build_caches(own, [("bicubic", records) for records in (*images.by_modality(), test_set.images)])
        with out_of_memory_explained(config, config.less_memory()):
            if options.dry_run:
                own, trial, images, test_set = sets[0]
                progress = Progress(own, trial)
                progress.start(images.target, test_set, device, notes(own, images))
                estimate = rehearse(own, trial, images, test_set, device)
                announce(estimate, own, len(sets), device, progress)
                return
            results = [train(own, trial, images, test_set, device) for own, trial, images, test_set in sets]
        finish_trials(METHOD, config, trials, results)
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]), how_to_go_on)
