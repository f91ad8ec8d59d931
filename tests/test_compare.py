"""The published band and what the comparison says of runs inside and outside it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from scripts import compare
from sdcl.config import PRESETS
from sdcl.errors import UserError
from sdcl.report.comparison import comparison_figure, comparison_table, departures, paper_table, verdict
from sdcl.report.run_files import RunFiles, read_run
from sdcl.training.method import METHOD
from sdcl.training.published import PUBLISHED

CURVES = PUBLISHED.curves


def published_log(dataset: str, run: int = 0) -> list[dict]:
    """The published run as if this project had logged it."""
    curve = CURVES[dataset].values()
    lines = []
    for epoch in range(curve["loss"].shape[1]):
        line: dict = {
            "epoch": epoch,
            "stage": 2 if epoch >= PRESETS[dataset].stage2_from else 1,
            "seconds": {"train": 1.0},
        }
        for name, values in curve.items():
            value = values[run, epoch]
            if np.isnan(value):
                continue
            mode, _, metric = name.partition(".")
            if metric:
                line.setdefault(mode, {})[metric] = float(value)
            else:
                line[name] = float(value) if name == "loss" else int(value)
        lines.append(line)
    return lines


def a_run(log: list[dict], dataset: str = "sysu") -> RunFiles:
    return RunFiles(Path("runs/some"), METHOD, PRESETS[dataset], log, None)


@pytest.mark.parametrize("dataset, runs, epochs", [("sysu", 1, 50), ("regdb", 10, 30)])
def test_curves_are_whole(dataset, runs, epochs):
    curve = CURVES[dataset].values()
    assert all(values.shape == (runs, epochs) for values in curve.values())
    stage2 = PRESETS[dataset].stage2_from
    for name, values in curve.items():
        expected = np.arange(epochs) >= stage2 if name == "associated_visible_clusters" else np.ones(epochs, bool)
        assert (~np.isnan(values) == expected).all(), name
        if "." in name:
            assert values.min() > 0 and values.max() <= 1
    for mode, row in PUBLISHED.results[dataset].items():  # the final tests are near the last epochs' tests
        assert abs(np.mean(curve[f"{mode}.rank1"][:, -1]) - row["rank1"]) < 0.02


def test_band_holds_the_published_runs_and_is_of_use():
    for curve in CURVES.values():
        for name in curve.compared:
            low, high = curve.band(name)
            values = curve.values()[name]
            known = ~np.isnan(values).all(0)
            assert (np.isnan(low) == ~known).all()
            assert (values[:, known] > low[known]).all() and (values[:, known] < high[known]).all()
            width = high[known] - low[known]
            assert (width < (0.25 if "." in name else 0.5 * high[known])).all()


@pytest.mark.parametrize("dataset, run", [("sysu", 0), ("regdb", 3), ("regdb", 9)])
def test_the_published_runs_stay_inside(dataset, run):
    runs = a_run(published_log(dataset, run), dataset)
    assert departures(runs, CURVES[dataset]) == []
    assert verdict(runs, []).startswith("inside the published band in all of its epochs")


def test_one_epoch_outside_is_noise_two_are_not():
    log = published_log("sysu")
    log[7]["all_search"]["rank1"] -= 0.2
    assert departures(a_run(log), CURVES["sysu"]) == []
    log[8]["all_search"]["rank1"] -= 0.2
    (found,) = departures(a_run(log), CURVES["sysu"])
    assert (found.name, found.epoch, found.side) == ("all_search.rank1", 7, "below")
    text = verdict(a_run(log), [found])
    assert (
        "leaves the published band at epoch 7" in text and "Rank-1 of all search" in text and "367 identities" in text
    )


def test_last_epoch_counts_and_better_does_not():
    log = published_log("sysu")[:12]
    log[11]["visible_clusters"] = 300
    for line in log:
        line["all_search"]["mAP"] += 0.2
        line["loss"] *= 0.5
    (found,) = departures(a_run(log), CURVES["sysu"])
    assert (found.name, found.epoch, found.side) == ("visible_clusters", 11, "below")
    assert "too few visible clusters" in verdict(a_run(log), [found])


def _flat(log):
    for line in log:
        line["loss"] = 17.0


def _no_pretraining(log):
    for line in log:
        line["all_search"]["rank1"] *= 0.2


def _no_stage2(log):
    for line in log[30:]:
        line["all_search"]["rank1"] = 0.5
        line["associated_visible_clusters"] = 200


def _split(log):
    for line in log:
        line["infrared_clusters"] = 900


@pytest.mark.parametrize(
    "change, epoch, words",
    [
        (_flat, 1, "--cluster-momentum-first-epoch"),
        (_no_pretraining, 0, "172 tensors"),
        (_no_stage2, 30, "stage 2 does not take hold"),
        (_split, 0, "too many infrared clusters"),
    ],
)
def test_reasons(change, epoch, words):
    log = published_log("sysu")
    change(log)
    text = verdict(a_run(log), departures(a_run(log), CURVES["sysu"]))
    assert f"leaves the published band at epoch {epoch}." in text and words in text


def test_table_and_figure():
    runs = [a_run(published_log("regdb", t), "regdb") for t in (0, 1)]
    table = comparison_table(runs, "regdb")
    assert len(table.splitlines()) == 1 + 2 * 2 + 2 and "90.96" in table and "goes on" in table
    figure = comparison_figure(runs, "regdb")
    assert len(figure.axes) == 6 and all(len(ax.lines) == 2 and len(ax.collections) == 1 for ax in figure.axes)
    with pytest.raises(UserError, match="not of one data set"):
        comparison_figure([runs[0], a_run(published_log("sysu"))], None)


@pytest.mark.slow
def test_program(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sysu"
    folder.mkdir()
    config = dataclasses.replace(PRESETS["sysu"], run_dir=folder)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    log = published_log("sysu")[:5]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    output = tmp_path / "c.png"
    monkeypatch.setattr("sys.argv", ["compare.py", str(folder), "--output", str(output)])
    compare.main()
    text = capsys.readouterr().out
    assert "The published band of SDCL: the published run, ± 5 points" in text and "inside the published band" in text
    assert output.read_bytes().startswith(b"\x89PNG")
    assert read_run(folder).published == "sysu"


def test_rows_for_a_paper(tmp_path):
    """In Markdown and LaTeX, with the published row; names with characters that LaTeX does not print are escaped."""
    run = dataclasses.replace(
        a_run(published_log("sysu")), folder=Path("runs/a_b"), results=dict(PUBLISHED.results["sysu"])
    )
    markdown = [line.strip("| ").split(" | ") for line in paper_table([run], "sysu", "markdown").splitlines()]
    wanted = [f"{100 * PUBLISHED.results['sysu'][mode][m]:.2f}" for mode in ("all_search", "indoor_search")
              for m in ("rank1", "rank10", "rank20", "mAP", "mINP")]  # fmt: skip
    assert markdown[0][:3] == ["method", "run", "all search R1"] and len(markdown[0]) == 12
    assert markdown[2] == ["SDCL", "runs/a_b", *wanted] and markdown[3][0] == "SDCL, published"
    latex = paper_table([run], None, "latex").splitlines()
    assert latex[0] == r"\begin{tabular}{llrrrrrrrrrr}" and latex[-1] == r"\end{tabular}"
    assert latex[4] == " & ".join(["SDCL", r"runs/a\_b", *wanted]) + r" \\"
    with pytest.raises(UserError, match="no final results yet"):
        paper_table([a_run(published_log("sysu"))], None, "latex")
    other = dataclasses.replace(run, results=dict(PUBLISHED.results["regdb"]))
    with pytest.raises(UserError, match="other modes"):
        paper_table([run, other], None, "latex")
