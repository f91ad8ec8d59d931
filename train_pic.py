"""Trains PIC on the true identities, as published: the supervised reference beside the unsupervised methods.

    python train_pic.py sysu                       SYSU-MM01 in data/sysu, results in runs/pic-sysu
    python train_pic.py regdb --trial 3            one of RegDB's ten splits; all ten without --trial
    python train_pic.py folder                     your own images in data/mine, results in runs/pic-mine
    python train_pic.py demo                       a narrow ResNet on drawn people, minutes on a laptop
    python train_pic.py sysu --dry-run             step times, memory and hours, before a run starts

It starts from ImageNet weights of a ResNet-50, `--pretrained FILE`. The run folder then holds config.json, log.jsonl
(a line an epoch), last.pth, best.pth and results.json. The loop in `train` is the method: draw batches of identities,
train, test every other epoch, save; docs/pic.md says what is computed, sdcl/pic/step.py is a step.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import sdcl.startup  # noqa: F401  # first: it tells what is missing
from sdcl.frame.cli import answer_early, how_to_go_on, parse_training
from sdcl.pic.presets import PRESETS

if __name__ == "__main__":
    answer_early(__doc__, PRESETS)  # --help need not wait for what follows

import torch
from torch.optim import Adam

from sdcl import distributed
from sdcl.data.cache import build_caches
from sdcl.data.training_set import TrainingSet, load_training_set
from sdcl.errors import UserError, run_program
from sdcl.frame.compiling import compile_modules
from sdcl.frame.dry_run import announce
from sdcl.frame.guards import out_of_memory_explained
from sdcl.frame.progress import Progress, result_table
from sdcl.frame.results import final_results, finish_trials, trial_numbers
from sdcl.frame.retrieval import TestSet, embed_test_set, evaluate, load_test_set
from sdcl.frame.run import Clock, Run
from sdcl.pic import PICConfig, PICNetwork, build_network, make_optimizer, train_epoch
from sdcl.pic.batches import EpochBatches, identity_batches
from sdcl.pic.method import METHOD
from sdcl.pic.rehearsal import rehearse
from sdcl.pic.testing import first_gallery, move_as_published
from sdcl.pic.views import INTERPOLATION
from sdcl.seeds import seed_everything


def train(config: PICConfig, trial: int, data: TrainingSet, test_set: TestSet, device: torch.device) -> dict[str, Any]:
    """One run: one RegDB trial, or a set without trials (trial 0). Returns its final results."""
    progress = Progress(config, trial)
    progress.start(data, test_set, device, notes(config))

    draws = identity_batches(data.records, config)  # "Batches"
    config = with_classes(config, len(draws.known))
    network, optimizer = start(config, trial, device)
    run = Run(config.run_dir / f"trial-{trial}" if trial else config.run_dir, METHOD, config, trial, data.fingerprint)
    run.restore(model=network, optimizer=optimizer)
    small_test = first_gallery(test_set)  # "Tests": it chooses the best epoch

    for epoch, rows in draws.epochs(run.next_epoch, config.epochs):
        clock = Clock()
        seed_everything(config.seed, trial, epoch)
        with clock("train"):
            batches = EpochBatches(data.records, draws.known, rows, config, trial, epoch)
            bar = progress.losses(epoch, draws.steps)
            losses = train_epoch(network, optimizer, batches, config, epoch, draws.steps, bar)  # "Training"
        table, rank1 = {}, None
        if config.test_follows(epoch):
            with clock("test"):
                tests = embed_test_set(METHOD, network, small_test, config, progress.bar)
                table = evaluate(METHOD, small_test, tests, config, final=False)
                rank1 = next(iter(table.values()))["rank1"]  # of the normalised features
            if config.move_after_test:
                move_as_published(network, small_test, config)

        line = {"epoch": epoch, **losses, "seconds": clock.seconds, **table}
        selected = run.save(line, rank1, model=network, optimizer=optimizer)
        progress.epoch(line, selected)

    results = final_results(run, network, test_set, start=lambda: initial_network(config, trial).state_dict())
    progress.say(f"\n{result_table(results, METHOD.parts)}\n")
    progress.say(f"{run.folder}/results.json holds this table; best.pth is epoch {run.best_epoch}, by {config.select}")
    run.close()
    return results


def with_classes(config: PICConfig, identities: int) -> PICConfig:
    """The settings with the number of training identities, which the data say."""
    if config.model.classes not in (None, identities):
        raise UserError(
            f"--classes is {config.model.classes}, but the training images are of {identities} identities: leave it out"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, classes=identities))


def initial_network(config: PICConfig, trial: int) -> PICNetwork:
    """The network with its initial weights, on the CPU."""
    seed_everything(config.seed, trial, "weights")
    assert config.model.classes is not None
    return build_network(config, config.model.classes)


def start(config: PICConfig, trial: int, device: torch.device) -> tuple[PICNetwork, Adam]:
    """The initial network and its optimiser."""
    network = initial_network(config, trial).to(device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile:
        compile_modules(network.convolutional, device)
    return network, make_optimizer(network.parameters(), config)


def notes(config: PICConfig) -> list[str]:
    """What the first lines of a run say of its steps and tests."""
    return [
        f"a step: {config.identities} identities, {config.instances} visible and {config.instances} infrared images of "
        "each, by their true labels (supervised)",
        f"a test every {config.test_every} epochs, of the first mode on its first gallery; the final one is of all",
    ]


def main(arguments: list[str]) -> None:
    options = parse_training(arguments, __doc__ or "", PRESETS)
    config = options.config
    device = distributed.start(config)
    try:
        if distributed.world() > 1:
            raise UserError("PIC trains in one process, on one GPU, as published: start it without torchrun")
        trials = trial_numbers(config)
        # All trials' images are found and read before the first one trains: a broken file of the last is known now.
        sets = [(trial, load_training_set(config, trial), load_test_set(config, trial)) for trial in trials]
        for _, data, test_set in sets:
            identity_batches(data.records, config)
            read = (data.records, test_set.images, first_gallery(test_set).images)
            build_caches(config, [(INTERPOLATION, records) for records in read])
        with out_of_memory_explained(config, [f"--instances {max(1, config.instances // 2)} (another result)"]):
            if options.dry_run:
                trial, data, test_set = sets[0]
                progress = Progress(config, trial)
                progress.start(data, test_set, device, notes(config))
                config = with_classes(config, len(identity_batches(data.records, config).known))
                estimate = rehearse(config, trial, data, test_set, *start(config, trial, device))
                announce(estimate, config, len(sets), device, progress)
                return
            results = [train(config, trial, data, test_set, device) for trial, data, test_set in sets]
        finish_trials(METHOD, config, trials, results)
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]), how_to_go_on)
