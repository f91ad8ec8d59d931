"""What a run shows while it goes: each epoch's summary, and the curves for TensorBoard."""

import builtins
import dataclasses
import json
from pathlib import Path

import pytest
from small_runs import draw_people, log_lines
from tiny_training import in_process, read_curves, settings

from sdcl.config import PRESETS
from sdcl.frame.curves import Curves
from sdcl.frame.diagnostics import SIZE_BINS
from sdcl.frame.progress import Progress
from sdcl.training.method import METHOD

LINE = {
    **log_lines(2, 1, ("visible_to_thermal", "thermal_to_visible"))[1],
    "loss": 4.25,
    "seconds": {"embed": 1072.1, "label": 108.3, "train": 1180.2, "test": 112.2},
    "visible_clusters": 690,
    "visible_outliers": 12202,
    "visible_purity": 0.911,
    "neighbors_visible_visible": 0.81,
    "visible_cluster_sizes": [0, 1, 300, 600, 20, 0, 0, 2],
}
"""Of stage 2, with the longest numbers and names."""


def summary(capsys, line: dict, **changes) -> list[str]:
    Progress(dataclasses.replace(PRESETS["regdb"], **changes), 3).epoch(line, True, "8 clusters were associated")
    return capsys.readouterr().out.splitlines()


def test_summary_of_an_epoch(capsys) -> None:
    lines = summary(capsys, LINE)
    assert max(map(len, lines)) <= 120
    first, visible, infrared, last = lines
    assert first.startswith("epoch  1/30 stage 1: loss 4.250, visible_to_thermal R1 60.00 mAP 60.00, thermal_to")
    assert first.endswith(" *best")
    assert visible.startswith("    visible    690 clusters  12202 outliers ▁▂▅█▂▁▁▂ 8 identities, ")
    assert visible.endswith(" identities, purity 0.91, ARI 0.60, pairs 0.81, across 0.50")
    assert "infrared     9 clusters      0 outliers" in infrared and "across" not in infrared, "that was not defined"
    assert last.startswith("    8 clusters were associated; seconds embed 1072.1 label 108.3 train")


def test_summary_without_true_identities(capsys) -> None:
    kept = ("epoch", "stage", "loss", "seconds", "visible_to_thermal", "thermal_to_visible",
            "associated_visible_clusters")  # fmt: skip
    own = {k: v for k, v in LINE.items() if k in kept or k.endswith(("_clusters", "_outliers"))}
    lines = summary(capsys, own, truth=False)
    assert lines[1] == "    visible    690 clusters  12202 outliers"
    assert lines[3].startswith("    8 clusters were associated; seconds")


def values(events, name: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in events.Scalars(name)]


def numbers(line: dict) -> int:
    return sum(len(v) if isinstance(v, dict) else not isinstance(v, list) for v in line.values()) - 1  # but the epoch


def test_curves_hold_the_log(tmp_path: Path) -> None:
    lines = log_lines(4, 2)
    curves = Curves(tmp_path, lines[:1], METHOD.terms)
    for line in lines[1:]:
        curves.add(line)
    events = read_curves(tmp_path)
    assert len(events.Tags()["scalars"]) == numbers(lines[-1])
    assert values(events, "loss/loss") == [(n, pytest.approx(line["loss"])) for n, line in enumerate(lines)]
    assert values(events, "labels/association_accuracy") == [(2, 0.75), (3, 0.75)]
    assert [step for step, _ in values(events, "seconds/train")] == [0, 1, 2, 3]
    assert values(events, "all_search/rank1")[3] == (3, pytest.approx(0.6))
    sizes = events.Histograms("labels/visible_cluster_sizes_log2")
    assert [h.step for h in sizes] == [0, 1, 2, 3]
    last = sizes[-1].histogram_value
    assert last.num == 12 and last.bucket == [0, 1, 4, 7, 0, 0, 0, 0]
    assert last.bucket_limit == [b + 1 for b in range(len(SIZE_BINS) + 1)]
    assert last.sum == 1 * 1.5 + 4 * 2.5 + 7 * 3.5


def test_curves_begin_anew_from_the_log(tmp_path: Path) -> None:
    """A kill between log and checkpoint takes back an epoch that is drawn already; it comes again, otherwise."""
    lines = log_lines(3, 2)
    (tmp_path / "notes.txt").write_text("a user's own file")
    killed = Curves(tmp_path, [], METHOD.terms)
    for line in lines:
        killed.add(line)
    resumed = Curves(tmp_path, lines[:2], METHOD.terms)
    resumed.add({**lines[2], "loss": 1.0})
    events = read_curves(tmp_path)
    assert values(events, "loss/loss") == [
        (0, pytest.approx(lines[0]["loss"])), (1, pytest.approx(lines[1]["loss"])), (2, 1.0)]  # fmt: skip
    assert (tmp_path / "notes.txt").exists()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_people(tmp_path_factory.mktemp("people"))


@pytest.mark.slow
def test_a_run_shows_every_epoch_once(people: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """Also when it goes on, in log, curves and summary; without TensorBoard a run does as well."""
    run, folder = in_process(capsys), tmp_path / "run"
    options = settings(data_dir=people, run_dir=folder, stage2_from=1)
    assert run("train", "demo", *options, "--epochs", 1).status == 0
    went_on = run("train", "demo", *options, "--epochs", 2, "--resume", "changed")
    assert went_on.status == 0
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    events = read_curves(folder / "tensorboard")
    assert [step for step, _ in values(events, "loss/loss")] == [0, 1] == [line["epoch"] for line in lines]
    for name in ("purity", "ari", "identities", "clusters", "outliers"):
        for modality in ("visible", "infrared"):
            key = f"{modality}_{name}"
            assert values(events, f"labels/{key}")[-1] == (1, pytest.approx(lines[1][key], rel=1e-6))
    assert [h.step for h in events.Histograms("labels/infrared_cluster_sizes_log2")] == [0, 1]
    assert any(key.startswith("neighbors_visible") for key in lines[1]) and lines[1]["stage"] == 2
    said = went_on.out.splitlines()
    shown = said[1 + next(n for n, text in enumerate(said) if text.startswith("epoch ")) :]
    assert "8 identities, purity" in shown[0] and "association" in shown[2]

    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError("No module named 'tensorboard'")
        return real(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        noted = run("train", "demo", *options, "--epochs", 2, "--resume", "auto", "--run-dir", tmp_path / "bare")
    assert noted.status == 0 and "note: no curves for TensorBoard" in noted.err
    off = run("train", "demo", *options, "--epochs", 1, "--no-tensorboard", "--run-dir", tmp_path / "off", "--no-truth")
    assert off.status == 0 and "note" not in off.err and "identities, purity" not in off.out
    assert not any((tmp_path / name / "tensorboard").exists() for name in ("bare", "off"))
