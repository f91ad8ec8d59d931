"""Trains SDCL without labels, as published, and tests every epoch.

    python train_sdcl.py sysu                      SYSU-MM01 in data/sysu, results in runs/sysu
    python train_sdcl.py regdb --trial 3           one of RegDB's ten splits; all ten without --trial
    python train_sdcl.py folder                    your own images in data/mine, results in runs/mine
    python train_sdcl.py demo                      a small ViT on drawn people, minutes on a laptop
    torchrun --nproc-per-node 2 train_sdcl.py sysu the same on two GPUs; the result does not depend on their number
    python train_sdcl.py sysu --dry-run            step times, memory and hours, before a run starts

The run folder then holds config.json, log.jsonl (a line an epoch), last.pth, best.pth and results.json.
The loop in `train` is the method: label, associate, build memories, train, test, save.
"""

from __future__ import annotations

import sys
from typing import Any

import sdcl.startup  # noqa: F401  # first: it tells what is missing
from sdcl.config import PRESETS, Config
from sdcl.frame.cli import answer_early, how_to_go_on, parse_training

if __name__ == "__main__":
    answer_early(__doc__, PRESETS)  # --help need not wait for what follows

import torch
from torch.optim import SGD

from sdcl import distributed
from sdcl.data.cache import build_caches
from sdcl.data.training_set import TrainingSet, load_training_set
from sdcl.errors import run_program
from sdcl.frame import guards
from sdcl.frame.dry_run import announce
from sdcl.frame.embedding import embed_records
from sdcl.frame.progress import CLUSTERS_LEGEND, Progress, result_table
from sdcl.frame.results import final_results, finish_trials, trial_numbers
from sdcl.frame.retrieval import TestSet, embed_test_set, evaluate, load_test_set
from sdcl.frame.run import Clock, Run
from sdcl.models import Embeddings, build_model, channels_last_stems, compile_parts
from sdcl.seeds import seed_everything
from sdcl.training.accumulation import choose_parts, free_bytes
from sdcl.training.branch import begin_stage2, build_stage1
from sdcl.training.checks import check_labels, diagnose_epoch
from sdcl.training.labels import PseudoLabels, make_labels
from sdcl.training.losses import build_memories
from sdcl.training.method import METHOD
from sdcl.training.rehearsal import Rehearsal
from sdcl.training.replicas import ReplicaForward
from sdcl.training.step import Batches, make_optimizer, train_epoch
from sdcl.training.views import images_read


def train(config: Config, trial: int, data: TrainingSet, test_set: TestSet, device: torch.device) -> dict[str, Any]:
    """One run: one RegDB trial, or a set without trials (trial 0). Returns its final results."""
    progress = Progress(config, trial)
    progress.start(data, test_set, device, notes(config))

    forward, optimizer = network(config, trial, device, data, progress)
    model = forward.model
    run = Run(config.run_dir / f"trial-{trial}" if trial else config.run_dir, METHOD, config, trial, data.fingerprint)
    saved = run.restore(model=model, optimizer=optimizer).get("labels")
    if config.stage1 and run.next_epoch == 0:
        progress.say(begin_stage2(run, config, model, optimizer))
    good = PseudoLabels(**saved).to(device) if saved else None  # the last labels that could be trained on

    for epoch in range(run.next_epoch, config.epochs):
        settings, clock = config.at(epoch), Clock()
        seed_everything(config.seed, trial, epoch)
        if settings.stage == 2 and epoch > 0 and config.at(epoch - 1).stage == 1:
            run.go_on_from_best(model, keep_as="stage1", optimizer=optimizer)  # section 6: the selected stage-1 weights
            good = None

        with clock("embed"):
            levels = embed_records(METHOD.embedding, model, data.records, config, "bicubic", progress.bar)
            visible, infrared = (Embeddings(**levels[m]) for m in ("visible", "infrared"))
        with clock("label"):
            labels = make_labels(visible, infrared, settings, config)  # sections 3 and 6
            problem = check_labels(labels, visible, infrared, settings, config)
            good = labels = guards.usable_labels(labels, problem, good, config.on_degenerate)
            truth = diagnose_epoch(labels, visible, infrared, data.records, config) if config.truth else {}
            memories = build_memories(visible, infrared, labels, settings, config)  # section 4
        with clock("train"):
            batches = Batches(data.records["visible"], data.records["infrared"], labels, settings, config, trial)
            bar = progress.losses(epoch, settings.steps)
            losses = train_epoch(forward, optimizer, batches, labels, memories, settings, config, bar)  # sections 4, 5
        with clock("test"):
            tests = embed_test_set(METHOD, model, test_set, config, progress.bar)
            table = evaluate(METHOD, test_set, tests, config, final=False)  # section 8

        line: dict[str, Any] = {"epoch": epoch, "stage": settings.stage, **losses, **labels.counts(), **truth}
        line |= {"seconds": clock.seconds, **table, **({"labels_kept": True} if problem else {})}
        rank1 = next(iter(table.values()))["rank1"]
        selected = run.save(line, rank1, model=model, optimizer=optimizer, labels=vars(good))
        progress.epoch(line, selected, labels.association(truth))

    results = final_results(run, model, test_set, start=lambda: initial_model(config, trial).state_dict())
    progress.say(f"\n{result_table(results, METHOD.parts)}\n")
    progress.say(f"{run.folder}/results.json holds this table; best.pth is epoch {run.best_epoch}, by {config.select}")
    run.close()
    return results


def initial_model(config: Config, trial: int) -> Any:
    """The model with its initial weights (section 1), or those of a finished stage 1, on the CPU."""
    seed_everything(config.seed, trial, "weights")
    return build_stage1(config, trial) if config.stage1 else build_model(config.model)


def network(
    config: Config, trial: int, device: torch.device, data: TrainingSet, progress: Progress
) -> tuple[ReplicaForward, SGD]:
    """The initial model over its batch-normalisation replicas, and its optimiser."""
    model = initial_model(config, trial).to(device)
    model.gradient_checkpointing = config.gradient_checkpointing
    if config.channels_last:
        channels_last_stems(model)
    forward = ReplicaForward(model, config.bn_replicas, config.precision, "none" if config.compile else config.parallel)
    if config.accumulate != "auto":
        model.accumulate = config.accumulate
    elif device.type == "cuda":
        images = sum(map(len, data.records.values()))
        model.accumulate, line = choose_parts(config, images, free_bytes(device), forward.share)
        progress.say(line)
    if config.compile:
        compile_parts(model)
    return forward, make_optimizer(model, config)


def notes(config: Config) -> list[str]:
    """What the first lines of a run say of its steps and labels."""
    step = (
        f"a step: {config.batch_size} visible images in two views and {config.batch_size} infrared, as "
        f"{config.bn_replicas} batch-normalisation replica(s)"
    )
    return [step, CLUSTERS_LEGEND] if config.truth else [step]


def main(arguments: list[str]) -> None:
    options = parse_training(arguments, __doc__ or "", PRESETS)
    config = options.config
    device = distributed.start(config)
    try:
        trials = trial_numbers(config)
        # All trials' images are found and read before the first one trains: a broken file of the last is known now.
        sets = [(trial, load_training_set(config, trial), load_test_set(config, trial)) for trial in trials]
        for _, data, test_set in sets:
            guards.check_enough_images(data.records, config.identities, config.instances, config.data_dir)
            build_caches(config, images_read(config, data.records, test_set.images))
        with guards.out_of_memory_explained(config, config.less_memory()):
            if options.dry_run:
                trial, data, test_set = sets[0]
                progress = Progress(config, trial)
                progress.start(data, test_set, device, notes(config))
                rehearsal = Rehearsal(config, trial, data, test_set, *network(config, trial, device, data, progress))
                announce(rehearsal.estimate(), config, len(sets), device, progress)
                return
            results = [train(config, trial, data, test_set, device) for trial, data, test_set in sets]
        finish_trials(METHOD, config, trials, results)
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]), how_to_go_on)
