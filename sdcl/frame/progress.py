"""What a run says while it goes: bars, one line an epoch, the final table."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from sdcl import distributed
from sdcl.data.training_set import TrainingSet
from sdcl.frame.diagnostics import SIZE_BINS
from sdcl.frame.retrieval import METRICS, TestSet, modes, parts_of
from sdcl.settings import RunSettings
from sdcl.tables import align_columns

__all__ = ["CLUSTERS_LEGEND", "Progress", "result_table"]


CLUSTERS_LEGEND = (
    f"below each epoch: bars, the numbers of clusters of 1, 2-{SIZE_BINS[1] - 1}, …, {SIZE_BINS[-1]} and more images; "
    "pairs and across, the shares of right neighbours within and across modalities"
)
"""For a method that clusters and compares with the true identities: what `Progress.epoch` prints."""


class Progress:
    """Prints for process 0 and keeps silent elsewhere; bars only where a person watches (standard error is a
    terminal)."""

    def __init__(self, config: RunSettings, trial: int) -> None:
        self.config, self.trial = config, trial
        self.silent = not distributed.is_main()
        self.bars = not self.silent and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None

    def start(self, data: TrainingSet, test_set: TestSet, device: torch.device, notes: Sequence[str] = ()) -> None:
        """Before the first epoch: data and its counts, device, what the method says of itself (`notes`: a step's
        batch, say), and how the best epoch is chosen."""
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
        for note in (*notes, f"{distributed.world()} process(es), {device}, {config.precision}"):
            self.say(note)
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

    def losses(self, epoch: int, steps: int) -> Callable[[int, dict[str, float]], object]:
        """A bar that counts an epoch's steps and shows the loss and its terms."""
        bar = self._new(" ".join(filter(None, (f"epoch {epoch}", self.config.stage_name(epoch)))), steps, "step")

        def show(step: int, means: dict[str, float]) -> None:
            bar.set_postfix({_short(name): f"{value:.3f}" for name, value in means.items()}, refresh=False)
            bar.update(step - bar.n)

        return show

    def epoch(self, line: dict[str, Any], selected: bool, note: str = "") -> None:
        """The epoch's summary: loss and tests; each modality's clusters where there are some, beside the true
        identities where these were looked at; the method's own `note` and times."""
        tests = [f"{m} R1 {100 * row['rank1']:.2f} mAP {100 * row['mAP']:.2f}" for m, row in modes(line).items()]
        stage = self.config.stage_name(line["epoch"])
        epoch = f"epoch {line['epoch']:>2}/{self.config.epochs}{f' {stage}' if stage else ''}"
        text = ", ".join([f"loss {line['loss']:.3f}", *tests])
        self.say(f"{epoch}: {text}{' *best' if selected else ''}")
        for m, other in (("visible", "infrared"), ("infrared", "visible")):
            if f"{m}_clusters" in line:
                found = f"{m:<8} {line[f'{m}_clusters']:>5} clusters {line[f'{m}_outliers']:>6} outliers"
                self.say(f"    {found}{_against_truth(line, m, other)}")
        seconds = "seconds " + " ".join(f"{phase} {s:.1f}" for phase, s in line["seconds"].items())
        self.say(f"    {f'{note}; ' if note else ''}{seconds}")

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
    """Terms as they fit beside a bar: cluster_infrared_global → c_inf_glob."""
    return "_".join(part[:1] if i == 0 and "_" in name else part[:4] for i, part in enumerate(name.split("_")))


def result_table(results: dict[str, Any], names: Mapping[str, str]) -> str:
    """The published table's form: a row for each mode and each of the run's weights, mean ± deviation in percent.

    names: of the method's own parts (`Method.parts`).
    """
    known = {"rerank": "re-ranked", "last": "last epoch", **names, "start": "before training", "chance": "chance"}
    found = parts_of(results)
    rows: list[tuple[str, ...]] = [("", "", "R1", "R5", "R10", "R20", "mAP", "mINP")]
    for name in ("", *(n for n in known if n in found), *(n for n in found if n not in known)):
        for mode, table in modes(results[name] if name else results).items():
            cells = (f"{100 * table[m]:.2f} ± {100 * table[f'{m}_std']:.2f}" for m in METRICS)
            rows.append((known.get(name, name) if name else "best", mode.replace("_", " "), *cells))
    return align_columns(rows, left=2)
