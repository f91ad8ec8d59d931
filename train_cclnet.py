"""Trains CCLNet without labels, from CLIP, as published: three stages in one run.

    python train_cclnet.py sysu                    SYSU-MM01 in data/sysu, results in runs/cclnet-sysu
    python train_cclnet.py regdb --trial 3         one of RegDB's ten splits; its settings are this project's own
    python train_cclnet.py folder                  your own images in data/mine, results in runs/cclnet-mine
    python train_cclnet.py demo                    a small network on drawn people, minutes on a laptop
    python train_cclnet.py sysu --stage 0          stage 0 alone; then, in the same folder:
    python train_cclnet.py sysu --stage 1 2 --resume auto
    python train_cclnet.py sysu --stage 1 2 --labels DIR      from label files, the authors' for instance
    python train_cclnet.py sysu --dry-run          step times, memory and hours, before a run starts

The run folder then holds config.json, log.jsonl (a line an epoch), last.pth, best.pth, results.json, stage 0's label
files and prompts.pth. `train` goes through the stages; `contrast` (0 and 2) and `learn_prompts` (1) are the method.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import sdcl.startup  # noqa: F401  # first: it tells what is missing
from sdcl.cclnet.presets import PRESETS
from sdcl.frame.cli import answer_early, how_to_go_on, parse_training

if __name__ == "__main__":
    answer_early(__doc__, PRESETS)  # --help need not wait for what follows

import torch
from torch import Tensor

from sdcl import distributed
from sdcl.cclnet.handover import Handover, read_handover, read_labels, write_handover, write_labels
from sdcl.cclnet.labels import build_memories, make_labels
from sdcl.cclnet.method import METHOD, embed_projections, initial_model
from sdcl.cclnet.model import CCLNetModel
from sdcl.cclnet.optimizers import contrast_optimizer, prompt_optimizer
from sdcl.cclnet.rehearsal import Rehearsal
from sdcl.cclnet.settings import Config
from sdcl.cclnet.steps import EpochBatches, learn_epoch, prompt_steps, train_epoch
from sdcl.data.cache import build_caches
from sdcl.data.training_set import TrainingSet, load_training_set
from sdcl.errors import UserError, run_program
from sdcl.frame import guards
from sdcl.frame.compiling import compile_modules
from sdcl.frame.dry_run import announce
from sdcl.frame.embedding import embed_records
from sdcl.frame.meters import Meters
from sdcl.frame.progress import CLUSTERS_LEGEND, Progress, result_table
from sdcl.frame.results import final_results, finish_trials, trial_numbers
from sdcl.frame.retrieval import TestSet, embed_test_set, evaluate, load_test_set
from sdcl.frame.run import Clock, Run
from sdcl.seeds import derive_seed, seed_everything


class Training:
    """One run: one RegDB trial, or a set without trials (trial 0)."""

    def __init__(self, config: Config, trial: int, data: TrainingSet, test_set: TestSet, device: torch.device) -> None:
        self.config, self.trial, self.data, self.test_set = config, trial, data, test_set
        self.device = device
        self.progress = Progress(config, trial)
        self.progress.start(data, test_set, device, notes(config))
        self.model: CCLNetModel = initial_model(config, trial).to(device)
        if config.compile:
            compile_modules(self.model.image.convolutional, device)
        self.initial = {name: x.cpu().clone() for name, x in self.model.image.state_dict().items()}
        folder = config.run_dir / f"trial-{trial}" if trial else config.run_dir
        self.run = Run(folder, METHOD, config, trial, data.fingerprint)
        self.saved: dict[str, Any] = self.run.restore(model=self.model.image)

    def train(self) -> dict[str, Any]:
        """All stages that the settings name; returns the final results."""
        handover = self.handed_on()
        for stage in self.config.stage:
            epochs = self.config.epochs_of(stage)
            if self.run.next_epoch >= epochs.stop:
                continue  # done, before the run was stopped
            if self.run.next_epoch <= epochs.start:
                self.begin(stage)
            handover = self.learn_prompts(handover) if stage == 1 else self.contrast(stage, handover)

        results = final_results(self.run, self.model.image, self.test_set, start=lambda: self.initial)
        best = self.config.at(self.run.best_epoch)
        self.progress.say(f"\n{result_table(results, METHOD.parts)}\n")
        self.progress.say(
            f"{self.run.folder}/results.json holds this table; best.pth is epoch {self.run.best_epoch} (epoch "
            f"{best.number} of stage {best.stage}), by {self.config.select}"
        )
        self.run.close()
        return results

    def handed_on(self) -> Handover:
        """What the stages before hand on: by this folder's run, or where the settings say."""
        if "handover" in self.saved:
            return Handover(**self.saved["handover"])
        first, config = self.config.stage[0], self.config
        if first == 1:
            if config.labels is None:
                raise UserError(
                    "stage 1 needs the labels of stage 0: --labels DIR (a run folder, or the authors' files), or "
                    "--resume auto in the folder where stage 0 ran"
                )
            return Handover(read_labels(config.labels, self.data.records), {}, {})
        if first == 2:
            if config.prompts is None:
                raise UserError(
                    "stage 2 needs what stage 1 handed on: --prompts runs/…/prompts.pth, or --resume auto in the "
                    "folder where stage 1 ran"
                )
            return read_handover(config.prompts, self.data.records)
        return Handover({}, {}, {})

    def begin(self, stage: int) -> None:
        """A stage begins: CLIP's weights again, a fresh optimiser, a choice of the best epoch of its own. The best of
        the stage before stays in the folder, as stage0.pth for example."""
        if stage > 0 and self.run.next_epoch == self.config.epochs_of(stage - 1).stop:
            self.run.go_on_from_best(self.model.image, keep_as=f"stage{stage - 1}")
        self.run.best_rank1 = -1.0
        self.model.image.load_state_dict(self.initial)
        self.saved = {}

    def contrast(self, stage: int, handover: Handover) -> Handover:
        """Stages 0 and 2: cluster contrast (sections 4, 5), in stage 2 with image-to-text classification (section 7).

        Returns what it was given, in stage 0 with the labels of its last epoch.
        """
        config, records, network = self.config, self.data.records, self.model.image
        if stage == 2 and not handover.texts:
            raise UserError("stage 2 needs text vectors: run stage 1 first (--stage 1 2)")
        optimizer = contrast_optimizer(network, config)
        if "optimizer" in self.saved:
            optimizer.load_state_dict(self.saved["optimizer"])
        epochs = config.epochs_of(stage)
        for epoch in range(max(self.run.next_epoch, epochs.start), epochs.stop):
            now, clock = config.at(epoch), Clock()
            seed_everything(config.seed, self.trial, epoch)
            with clock("embed"):
                levels = embed_records(METHOD.embedding, network, records, config, "lanczos", self.progress.bar)
            with clock("label"):
                found = make_labels({m: x["features"] for m, x in levels.items()}, now, config)
                memories = build_memories(found, now, config)
                line: dict[str, Any] = found.describe(records, config.truth)
            with clock("train"):
                seed = derive_seed(config.seed, self.trial, epoch)
                batches = EpochBatches(records, found.labels, config, seed)
                meters = Meters(epoch, batches.steps, self.progress.losses(epoch, batches.steps))
                texts = handover if stage == 2 else None
                line |= train_epoch(
                    network, optimizer, batches, found.labels, memories, texts, now, config, meters
                )
            line |= {f"mixed_{m}_clusters": int(mixed.sum()) for m, mixed in memories.mixed.items()}
            if stage == 0 and epoch == epochs[-1]:  # of the last epoch, whether or not it is the best (section 4)
                handover = Handover({m: y.cpu() for m, y in found.labels.items()}, {}, {})
                write_labels(self.run.folder, handover.labels)
            self.end(epoch, line, clock, optimizer, handover)
        return handover

    def learn_prompts(self, handover: Handover) -> Handover:
        """Stage 1: a sentence for each stored cluster, learned from projections by CLIP as it is (section 6).

        Returns what it was given, with learned vectors and the texts that they give.
        """
        config, language = self.config, self.model.language
        labels = {m: y.to(self.device) for m, y in handover.labels.items()}
        clusters = [int(y.max()) + 1 for y in labels.values()]
        seed_everything(config.seed, self.trial, "prompts")
        language.restart(*clusters)
        optimizer = prompt_optimizer(language, config)
        if "optimizer" in self.saved:
            _set_contexts(self.model, handover.contexts)
            optimizer.load_state_dict(self.saved["optimizer"])
        start = Clock()
        with start("embed"):
            levels = embed_records(
                embed_projections, self.model.image, self.data.records, config, "lanczos", self.progress.bar
            )
        kept = {m: y >= 0 for m, y in labels.items()}
        projections = {m: levels[m]["projections"][kept[m]] for m in labels}
        labels = {m: y[kept[m]] for m, y in labels.items()}
        steps = prompt_steps(labels, config)

        epochs = config.epochs_of(1)
        for epoch in range(max(self.run.next_epoch, epochs.start), epochs.stop):
            now, clock = config.at(epoch), Clock()
            clock.seconds |= start.seconds
            start.seconds = {}
            with clock("train"):
                seed = derive_seed(config.seed, self.trial, epoch)
                meters = Meters(epoch, steps, self.progress.losses(epoch, steps))
                line: dict[str, Any] = dict(
                    learn_epoch(language, optimizer, projections, labels, now.learning_rate, config, seed, meters)
                )
            texts = {m: language.all_texts(m) for m in labels}
            for m, t in texts.items():
                line[f"sentence_accuracy_{m}"] = sentence_accuracy(projections[m], t, labels[m])
            contexts = {m: language.sentences(m).context.detach().cpu().clone() for m in labels}
            done = {m: t.cpu() for m, t in texts.items()} if epoch == epochs[-1] else {}
            handover = Handover(handover.labels, contexts, done)
            if done:
                write_handover(self.run.folder / "prompts.pth", handover)
            self.end(epoch, line, clock, optimizer, handover)
        return handover

    def end(
        self, epoch: int, line: dict[str, Any], clock: Clock, optimizer: torch.optim.Optimizer, handover: Handover
    ) -> None:
        """An epoch ends: with a test if it is one of those, with its log line and its checkpoints."""
        now, rank1 = self.config.at(epoch), None
        if now.test:
            with clock("test"):
                network = self.model.image
                tests = embed_test_set(METHOD, network, self.test_set, self.config, self.progress.bar)
                table = evaluate(METHOD, self.test_set, tests, self.config, final=False)
            rank1 = next(iter(table.values()))["rank1"]
            line |= table
        line = {"epoch": epoch, "stage": now.stage, "stage_epoch": now.number, **line, "seconds": clock.seconds}
        selected = self.run.save(
            line, rank1, model=self.model.image, optimizer=optimizer, handover=vars(handover)
        )
        self.progress.epoch(line, selected, note(line))


def sentence_accuracy(projections: Tensor, texts: Tensor, labels: Tensor) -> float:
    """Share (0 … 1) of images [n, P] whose own cluster's text, of all [K, P], has the largest product with them."""
    return float(((projections @ texts.t()).argmax(1) == labels).float().mean())


def _set_contexts(model: CCLNetModel, contexts: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for m, context in contexts.items():
            model.language.sentences(m).context.copy_(context)


def note(line: Mapping[str, Any]) -> str:
    """What the epoch's summary says of the meeting of the modalities, or of sentences."""
    if "matched_clusters" not in line:
        accuracy = ", ".join(f"{m} {line[f'sentence_accuracy_{m}']:.2f}" for m in ("visible", "infrared"))
        return f"images whose own sentence is the nearest: {accuracy}"
    right = f" (accuracy {line['matching_accuracy']:.2f})" if "matching_accuracy" in line else ""
    mixed = " + ".join(str(line[f"mixed_{m}_clusters"]) for m in ("visible", "infrared"))
    return f"matched clusters {line['matched_clusters']}{right}, mixed {mixed}"


def notes(config: Config) -> list[str]:
    """What the first lines of a run say of its steps and labels."""
    size = config.batch_size
    lines = [f"a step of stages 0 and 2: {size} visible and {size} infrared images"]
    if config.text == "random":
        lines.append("the text encoder has random weights: sentences tell clusters apart, but mean nothing")
    if config.dataset == "regdb":
        lines.append("settings for RegDB were not published; these are this project's own")
    return [*lines, CLUSTERS_LEGEND] if config.truth else lines


def main(arguments: list[str]) -> None:
    options = parse_training(arguments, __doc__ or "", PRESETS)
    config = options.config
    device = distributed.start(config)
    try:
        if distributed.world() > 1:
            raise UserError("CCLNet trains in one process, as published: start train_cclnet.py without torchrun")
        trials = trial_numbers(config)
        # All trials' images are found and read before the first one trains: a broken file of the last is known now.
        sets = [(trial, load_training_set(config, trial), load_test_set(config, trial)) for trial in trials]
        for _, data, test_set in sets:
            guards.check_enough_images(data.records, config.identities, 1, config.data_dir)
            build_caches(config, [("lanczos", data.records), ("lanczos", test_set.images)])
        smaller = [f"--instances {max(1, config.instances // 2)} (another result)"]
        with guards.out_of_memory_explained(config, smaller):
            if options.dry_run:
                trial, data, test_set = sets[0]
                progress = Progress(config, trial)
                progress.start(data, test_set, device, notes(config))
                rehearsal = Rehearsal(config, trial, data, test_set, initial_model(config, trial).to(device))
                announce(rehearsal.estimate(), config, len(sets), device, progress)
                return
            results = [Training(config, trial, data, test_set, device).train() for trial, data, test_set in sets]
        finish_trials(METHOD, config, trials, results)
    finally:
        distributed.stop()


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]), how_to_go_on)
