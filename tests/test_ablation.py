"""The ablation script on a tiny drawn set: every row, going on, the table."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from tiny_sets import TINY_RUN

import train_sdcl
from sdcl.errors import UserError
from sdcl.frame.many_runs import results_table
from sdcl.training.method import METHOD

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import ablation  # noqa: E402

pytestmark = pytest.mark.slow

CLUSTERS = ["--synthetic-images", "2", "--eps", "0.5", "--k1", "6", "--k1-visible-stage2", "6", "--min-samples", "2"]
SMALL = [*TINY_RUN, *CLUSTERS, "--seeds", "1", "2", "--data-seeds", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Both seeds' runs of every row; those of seed 2 are copies, with other results."""
    folder = tmp_path_factory.mktemp("ablation")
    ablation.main([*SMALL[: SMALL.index("2", SMALL.index("--seeds"))], *SMALL[-2:], "--run-dir", str(folder)])
    for row in METHOD.ablation:
        copy = shutil.copytree(folder / row / "seed-1-data-4", folder / row / "seed-2-data-4")
        for name, old, new in (("config.json", '"seed": 1', '"seed": 2'), ("results.json", '"mAP": 0.', '"mAP": 0.1')):
            text = (copy / name).read_text()
            assert old in text
            (copy / name).write_text(text.replace(old, new))
    return folder


def test_every_row_trains_with_its_parts(runs):
    switches = {}
    for row in METHOD.ablation:
        config = json.loads((runs / row / "seed-2-data-4" / "config.json").read_text())
        switches[row] = tuple(config[name] for name in ("shallow", "cnl", "cra"))
        assert (config["seed"], config["synthetic_seed"]) == (2, 4)
        log = [json.loads(line) for line in (runs / row / "seed-2-data-4" / "log.jsonl").read_text().splitlines()]
        assert ("neighbor_visible_visible" in log[0]) is config["cnl"]
        assert ("cluster_visible_shallow" in log[0]) is config["shallow"]
        assert log[1]["stage"] == (2 if config["cra"] else 1)
    assert list(switches.values()) == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]


def test_table_is_the_mean_and_deviation_of_the_results(runs, capsys):
    ablation.main(["demo", "--table-only", "--run-dir", str(runs)])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    named = {(line[0].strip("| "), line[1]): line for line in lines}
    names = [(name, epoch) for name, _ in METHOD.ablation.values() for epoch in ("selected", "last")]
    assert [key for key in named if key[1] in ("selected", "last")] == names
    column = lines[0].index("all search mAP")
    for epoch, pick in (("selected", lambda r: r), ("last", lambda r: r["last"])):
        files = [runs / "cnl" / f"seed-{seed}-data-4" / "results.json" for seed in (1, 2)]
        a, b = (100 * pick(json.loads(file.read_text()))["all_search"]["mAP"] for file in files)
        assert named["+ CNL", epoch][column] == f"{(a + b) / 2:.1f} ± {abs(a - b) / 2**0.5:.1f}"
    assert named["chance", ""][lines[0].index("all search R1")] == "33.3 ± 0.0"  # three test identities


def test_finished_runs_are_left_alone_and_others_go_on(runs, monkeypatch):
    trained = []
    monkeypatch.setattr(
        train_sdcl, "main", lambda arguments: trained.append(arguments[arguments.index("--run-dir") + 1])
    )
    ablation.main([*SMALL, "--run-dir", str(runs)])
    assert trained == []
    (runs / "cnl" / "seed-2-data-4" / "results.json").rename(runs / "kept.json")
    try:
        ablation.main([*SMALL, "--run-dir", str(runs)])
    finally:
        (runs / "kept.json").rename(runs / "cnl" / "seed-2-data-4" / "results.json")
    assert trained == [str(runs / "cnl" / "seed-2-data-4")]


def test_runs_of_other_settings_are_not_mixed(runs):
    file = runs / "cra" / "seed-1-data-4" / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"steps_stage1": 2', '"steps_stage1": 7'))
    try:
        with pytest.raises(UserError, match="steps-stage1 7"):
            results_table(ablation.rows_of(METHOD), runs)
    finally:
        file.write_text(text)


@pytest.mark.parametrize(
    "arguments, message", [(["demo", "--table-only"], "no finished run"), (["sysu", "--data-seeds", "1"], "synthetic")]
)
def test_what_cannot_be_done_is_said(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        ablation.main([*arguments, "--run-dir", str(tmp_path)])
