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

import torch
from torch.optim import SGD

from sdcl import distributed
from sdcl.config import Config
from sdcl.data.cache import build_caches
from sdcl.data.sets import SETS
from sdcl.data.training_set import TrainingSet, load_training_set
from sdcl.errors import run_program
from sdcl.frame.checkpoints import write_json
from sdcl.frame.cli import how_to_go_on, parse_training
from sdcl.frame.diagnostics import diagnose_epoch
from sdcl.frame.dry_run import dry_run
from sdcl.frame.embedding import embed_records
from sdcl.frame.guards import check_enough_images, check_labels, out_of_memory_explained
from sdcl.frame.progress import Progress, result_table
from sdcl.frame.results import final_results, mean_of_trials
from sdcl.frame.retrieval import TestSet, embed_test_set, evaluate, load_test_set
from sdcl.frame.run import Clock, Run
from sdcl.models import build_model, channels_last_stems, compile_parts
from sdcl.seeds import seed_everything, use_deterministic_kernels
from sdcl.training.labels import make_labels
from sdcl.training.losses import build_memories
from sdcl.training.replicas import ReplicaForward
from sdcl.training.step import Batches, make_optimizer, train_epoch
from sdcl.training.views import images_read


def train(config: Config, trial: int, data: TrainingSet, test_set: TestSet, device: torch.device) -> dict[str, Any]:
    """One run: one RegDB trial, or a set without trials (trial 0). Returns its final results."""
    progress = Progress(config, trial)
    progress.start(data, test_set, device)

    forward, optimizer = network(config, trial, device)
    model = forward.model
    run = Run(config.run_dir / f"trial-{trial}" if trial else config.run_dir, config, trial, data.fingerprint)
    run.restore(model, optimizer)

    for epoch in range(run.next_epoch, config.epochs):
        settings, clock = config.at(epoch), Clock()
        seed_everything(config.seed, trial, epoch, distributed.rank())
        if settings.stage == 2 and epoch > 0 and config.at(epoch - 1).stage == 1:
            run.enter_stage2(model)  # section 6: the selected stage-1 weights

        with clock("embed"):
            visible, infrared = embed_records(model, data.records, config, "bicubic", progress.bar).values()
        with clock("label"):
            labels = make_labels(visible, infrared, settings, config)  # sections 3 and 6
            labels = run.usable(labels, check_labels(labels, visible, infrared, settings, config))
            truth = diagnose_epoch(labels, visible, infrared, data.records, config) if config.truth else {}
            memories = build_memories(visible, infrared, labels, settings, config)  # section 4
        with clock("train"):
            batches = Batches(data.records["visible"], data.records["infrared"], labels, settings, config, trial)
            bar = progress.losses(settings)
            losses = train_epoch(forward, optimizer, batches, labels, memories, settings, config, bar)  # sections 4, 5
        with clock("test"):
            tests = embed_test_set(model, test_set, config, progress.bar)
            table = evaluate(test_set, tests, config, final=False)  # section 8

        line: dict[str, Any] = {"epoch": epoch, "stage": settings.stage, **losses, **labels.counts(), **truth}
        line |= {"seconds": clock.seconds, **table}
        selected = run.save(model, optimizer, line, rank1=next(iter(table.values()))["rank1"])
        progress.epoch(line, selected)

    results = final_results(run, model, test_set)
    progress.say(f"\n{result_table(results)}\n")
    progress.say(f"{run.folder}/results.json holds this table; best.pth is epoch {run.best_epoch}, by {config.select}")
    run.close()
    return results


def network(config: Config, trial: int, device: torch.device) -> tuple[ReplicaForward, SGD]:
    """The model with its initial weights (section 1), over its batch-normalisation replicas, and its optimiser."""
    seed_everything(config.seed, trial, "weights")
    model = build_model(config.model).to(device)
    model.gradient_checkpointing, model.accumulate = config.gradient_checkpointing, config.accumulate
    if config.channels_last:
        channels_last_stems(model)
    forward = ReplicaForward(model, config.bn_replicas, config.precision, "none" if config.compile else config.parallel)
    if config.compile:
        compile_parts(model)
    return forward, make_optimizer(model, config)


def main(arguments: list[str]) -> None:
    options = parse_training(arguments, __doc__ or "")
    config = options.config
    use_deterministic_kernels(config.deterministic)
    device = distributed.start()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    try:
        trials = [config.trial] if config.trial else SETS[config.dataset].trials
        # All trials' images are found and read before the first one trains: a broken file of the last is known now.
        sets = [(trial, load_training_set(config, trial), load_test_set(config, trial)) for trial in trials]
        for _, data, test_set in sets:
            check_enough_images(data.records, config.identities, config.instances, config.data_dir)
            build_caches(config, images_read(config, data.records, test_set.images))
        with out_of_memory_explained(config):
            if options.dry_run:
                dry_run(config, sets, *network(config, trials[0], device))
                return
            results = [train(config, trial, data, test_set, device) for trial, data, test_set in sets]
        if len(trials) > 1 and distributed.is_main():
            write_json(config.run_dir / "results.json", mean_of_trials(results))
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]), how_to_go_on)
