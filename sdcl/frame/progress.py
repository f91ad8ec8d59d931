"""What a run says while it goes: bars, one line an epoch, the final table."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from sdcl import distributed
from sdcl.config import Config, EpochSettings
from sdcl.data.training_set import TrainingSet
from sdcl.frame.diagnostics import SIZE_BINS
from sdcl.frame.retrieval import METRICS, TestSet, modes
from sdcl.tables import align_columns

__all__ = ["Progress", "result_table"]


class Progress:
    """Prints for process 0 and keeps silent elsewhere; bars only where a person watches (standard error is a
    terminal)."""

    def __init__(self, config: Config, trial: int) -> None:
        self.config, self.trial = config, trial
        self.silent = not distributed.is_main()
        self.bars = not self.silent and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None

    def start(self, data: TrainingSet, test_set: TestSet, device: torch.device) -> None:
        """Before the first epoch: data and its counts, batch, device, and how the best epoch is chosen."""
        config = self.config
        visible, infrared = (len(data.records[m]) for m in ("visible", "infrared"))
        self.say(
            f"training data: {config.data_dir}{f', trial {self.trial}' if self.trial else ''}: "
            f"{visible} visible and {infrared} infrared images "
            f"(fingerprint {data.fingerprint})"
        )
        own_data = not config.published_counts and config.synthetic_seed is None
        if own_data or (config.published_counts and not data.report.ok):
            self.say(data.report.table())
        self.say(
            data.report.verdict
            if config.published_counts
            else "counts are not compared with published ones (a data set of its own)"
        )
        self.say(
            f"a step: {config.batch_size} visible images in two views and {config.batch_size} infrared, "
            f"as {config.bn_replicas} "
            f"batch-normalisation replica(s), on {distributed.world()} process(es), {device}, {config.precision}"
        )
        if config.truth:
            self.say(
                f"below each epoch: bars, the numbers of clusters of 1, 2-{SIZE_BINS[1] - 1}, …, {SIZE_BINS[-1]} and "
                "more images; pairs and across, the shares of right neighbours within and across modalities"
            )
        if config.select == "test-rank1":
            self.say(
                "the best epoch is chosen by Rank-1 on the test set, as in the published runs; "
                "--select last never looks at test labels"
            )

    def say(self, text: str) -> None:
        if not self.silent:
            self.close()
            print(text, flush=True)

    def bar(self, what: str, total: int) -> Callable[[int], object]:
        """A bar that counts images."""
        return self._new(what, total, "image").update

    def losses(self, settings: EpochSettings) -> Callable[[int, dict[str, float]], object]:
        """A bar that counts steps and shows the loss and its terms."""
        bar = self._new(f"epoch {settings.epoch} stage {settings.stage}", settings.steps, "step")

        def show(step: int, means: dict[str, float]) -> None:
            bar.set_postfix({_short(name): f"{value:.3f}" for name, value in means.items()}, refresh=False)
            bar.update(step - bar.n)

        return show

    def epoch(self, line: dict[str, Any], selected: bool) -> None:
        """The epoch's summary: loss and tests; each modality's clusters, with `config.truth` beside the true
        identities; association and times."""
        tests = ", ".join(
            f"{mode} R1 {100 * table['rank1']:.2f} mAP {100 * table['mAP']:.2f}" for mode, table in modes(line).items()
        )
        epoch = f"epoch {line['epoch']:>2}/{self.config.epochs} stage {line['stage']}"
        self.say(f"{epoch}: loss {line['loss']:.3f}, {tests}{' *best' if selected else ''}")
        for m, other in (("visible", "infrared"), ("infrared", "visible")):
            found = f"{m:<8} {line[f'{m}_clusters']:>5} clusters {line[f'{m}_outliers']:>6} outliers"
            self.say(f"    {found}{_against_truth(line, m, other)}")
        seconds = "seconds " + " ".join(f"{phase} {s:.1f}" for phase, s in line["seconds"].items())
        if line["stage"] == 2:
            right = f", {line['association_accuracy']:.2f} right" if "association_accuracy" in line else ""
            seconds = f"association {line['associated_visible_clusters']} clusters{right}; {seconds}"
        self.say(f"    {seconds}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _new(self, what: str, total: int, unit: str) -> tqdm[Any]:
        self.close()
        self._bar = tqdm(total=total, desc=what, unit=unit, disable=not self.bars, leave=False)
        return self._bar


def _against_truth(line: dict[str, Any], modality: str, other: str) -> str:
    """A modality's clusters and neighbours judged by true identities, as far as the log line has these numbers."""
    if f"{modality}_identities" not in line:
        return ""
    sizes = line[f"{modality}_cluster_sizes"]
    bars = "".join("▁▂▃▄▅▆▇█"[math.ceil(7 * n / max(*sizes, 1))] for n in sizes)
    shares = {
        "purity": f"{modality}_purity",
        "ARI": f"{modality}_ari",
        "pairs": f"neighbors_{modality}_{modality}",
        "across": f"neighbors_{modality}_{other}",
    }
    numbers = "".join(f", {name} {line[key]:.2f}" for name, key in shares.items() if key in line)
    return f" {bars} {line[f'{modality}_identities']} identities{numbers}"


def _short(name: str) -> str:
    """Terms as they fit beside a bar: cluster_infrared_deep → c_inf_deep."""
    return "_".join(part[:1] if i == 0 and "_" in name else part[:4] for i, part in enumerate(name.split("_")))


def result_table(results: dict[str, Any]) -> str:
    """The published table's form: a row for each mode and each of the run's weights, mean ± deviation in percent."""
    rows: list[tuple[str, ...]] = [("", "", "R1", "R5", "R10", "R20", "mAP", "mINP")]
    parts = {"": modes(results)}
    parts |= {name: results[name] for name in ("rerank", "last", "stage1", "start", "chance") if name in results}
    for name, label in (
        ("", "best"),
        ("rerank", "re-ranked"),
        ("last", "last epoch"),
        ("stage1", "stage 1 alone"),
        ("start", "before training"),
        ("chance", "chance"),
    ):
        for mode, table in parts.get(name, {}).items():
            rows.append(
                (
                    label,
                    mode.replace("_", " "),
                    *(f"{100 * table[m]:.2f} ± {100 * table[f'{m}_std']:.2f}" for m in METRICS),
                )
            )
    return align_columns(rows, left=2)
