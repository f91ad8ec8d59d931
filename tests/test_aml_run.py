"""Whole runs of train_aml.py on a tiny drawn set: four phases, resume in the middle of them, phases by themselves."""

import gc
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

import test_sdcl
import train_aml
from sdcl.aml.presets import PRESETS
from sdcl.data.readers.market_gen import load_source
from sdcl.errors import run_program
from sdcl.frame.cli import how_to_go_on
from sdcl.frame.run import Run
from sdcl.tensor_files import read_weights

pytestmark = pytest.mark.slow

# fmt: off
TINY = [
    "--synthetic-identities", "4", "2", "--synthetic-images", "2", "--synthetic-size", "32", "16",
    "--image-height", "32", "--image-width", "16", "--channels", "2",
    "--source-iterations", "3", "--target-iterations", "5", "--source-batch", "8", "--target-batch", "8",
    "--warmup-iterations", "1", "--source-delay-iterations", "2", "--target-delay-iterations", "1",
    "--save-every", "2", "--evaluate-every", "4", "--recluster-every", "3", "--eps", "0.4", "--k1", "8", "--k2", "3",
    "--clusters", "5", "--no-tensorboard",
]
# fmt: on
ROOT = Path(__file__).parents[1]
PHASES = ("source", "source_mutual", "target_dbscan", "target_kmeans")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, in the folder `run`; the drawn data beside it."""
    root = tmp_path_factory.mktemp("aml")
    train_aml.main(arguments(root, "run"))
    return root


def arguments(root, run, *more):
    places = ["--data-dir", root / "data", "--source-dir", root / "source", "--run-dir", root / run]
    return ["demo", *map(str, places), *TINY, *map(str, more)]


def log(folder):
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same(a, b):
    """Equal to the last bit, whatever is nested."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def fails(arguments, capsys):
    """The one line that a command ends in."""
    gc.collect()  # a run that ended in an error holds its folder's lock until its last frame is gone
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_program(lambda: train_aml.main(arguments), how_to_go_on)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def test_four_phases_in_one_command(whole):
    lines = log(whole / "run")
    assert [(line["phase"], line["steps"]) for line in lines] == [
        *((p, s) for p in PHASES[:2] for s in (1, 3)),
        *((p, s) for p in PHASES[2:] for s in (2, 4, 5)),
    ]
    assert [line["stage"] for line in lines] == [1] * 4 + [2] * 6
    tested = [line["steps"] for line in lines if "all_search" in line]
    assert tested == [3, 3, 4, 5, 4, 5]
    assert [line["clusterings"] for line in lines[4:]] == [1, 2, 2] * 2
    assert all(line["kl_12"] == 0 for line in lines[:2]) and all(line["kl_12"] > 0 for line in lines[2:4])
    found = {"pairs", "pair_distance", "visible_clusters", "infrared_outliers", "association_accuracy"}
    assert found <= lines[4].keys()
    results = json.loads((whole / "run" / "results.json").read_text())
    assert {"all_search", "indoor_search", *PHASES[:3], "start", "chance"} <= results.keys()
    assert results["galleries"] == "seeded" and results["selected_by"] == "last"


def test_hand_over_carries_the_backbones_alone_from_stage_1_to_2(whole):
    mutual, dbscan = (read_weights(whole / "run" / f"{p}.pth") for p in ("source_mutual", "target_dbscan"))
    for network in ("model", "second"):
        assert int(mutual[network]["stage"]) == 1 and int(dbscan[network]["stage"]) == 2
    # five steps at a small rate: the exponent began at 3 again
    assert abs(float(dbscan["model"]["pool.p"]) - 3) < 0.01
    assert not same(mutual["model"], mutual["second"])


def test_best_is_the_last_and_can_be_tested(whole, capsys):
    run = whole / "run"
    best, last = read_weights(run / "best.pth"), read_weights(run / "last.pth")
    assert same(best["model"], last["model"]) and best["method"] == "aml"
    assert {"optimizer", "second", "memories", "labels"} <= last.keys() and "second" not in best
    test_sdcl.main(["demo", "--checkpoint", str(run / "best.pth"), "--data-dir", str(whole / "data")])
    table = json.loads((run / "test-best.json").read_text())
    known = json.loads((run / "results.json").read_text())
    assert table["all_search"] == known["all_search"]


def test_a_run_by_parts_goes_on_to_the_last_bit(whole, monkeypatch):
    """Stopped in the middle of the first phase, ended by --until after it and after the next, and stopped once more in
    target_dbscan, between two clusterings."""
    folder = whole / "parts"
    save = Run.save

    def stop(run, *args, **parts):
        save(run, *args, **parts)
        run.close()
        raise KeyboardInterrupt

    def stopped(*options):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Run, "save", stop)
            train_aml.main(arguments(whole, folder.name, *options))

    expected = log(whole / "run")
    stopped("--until", "source")
    assert log(folder) == expected[:1]
    train_aml.main(arguments(whole, folder.name, "--until", "source", "--resume", "auto"))
    assert [line["phase"] for line in log(folder)] == ["source"] * 2
    train_aml.main(arguments(whole, folder.name, "--until", "source_mutual", "--resume", "auto"))
    assert log(folder) == expected[:4]
    stopped("--resume", "auto")
    assert log(folder) == expected[:5]
    train_aml.main(arguments(whole, folder.name, "--resume", "auto"))
    assert log(folder) == expected
    ours, theirs = (read_weights(f / "last.pth") for f in (folder, whole / "run"))
    assert same({k: v for k, v in ours.items() if k != "config"}, {k: v for k, v in theirs.items() if k != "config"})
    for phase in PHASES:
        ours, theirs = (read_weights(f / f"{phase}.pth") for f in (folder, whole / "run"))
        assert same(ours["model"], theirs["model"]) and same(ours["second"], theirs["second"])


def test_a_phase_starts_from_the_file_of_the_one_before(whole):
    folder = whole / "later"
    start = whole / "run" / "target_dbscan.pth"
    train_aml.main(arguments(whole, "later", "--phase", "target_kmeans", "--start-from", start))
    assert same(read_weights(folder / "last.pth")["model"], read_weights(whole / "run/last.pth")["model"])
    results, known = (json.loads((f / "results.json").read_text()) for f in (folder, whole / "run"))
    assert results["start"] == known["target_dbscan"]


def test_labels_of_ones_own(whole, tmp_path, monkeypatch, capsys):
    """Any network's clusters of the source images are labels that a run can be given."""
    output = tmp_path / "labels.txt"
    options = ["--source-dir", whole / "source", "--output", output, "--k1", 8, "--k2", 3]
    monkeypatch.setattr("sys.argv", ["label_source.py", str(whole / "run/best.pth"), *map(str, options)])
    runpy.run_path(str(ROOT / "scripts" / "label_source.py"))["main"]()
    assert "clusters of" in capsys.readouterr().out
    source = load_source(whole / "source", "sysumm01", output)
    assert source.classes >= 1 and source.unknown == 0 and source.origin == "labels.txt"


def test_other_labels_than_the_run_began_with(whole, capsys, tmp_path):
    labels = tmp_path / "labels.txt"
    lines = (whole / "source/pseudo_labels.txt").read_text().splitlines()
    labels.write_text("\n".join(lines[:-1]))
    command = arguments(whole, "run", "--source-labels", labels, "--resume", "changed")
    assert "or its labels, are not those" in fails(command, capsys)


def test_dry_run_leaves_nothing_behind(whole, capsys):
    train_aml.main(arguments(whole, "dry", "--dry-run"))
    out = capsys.readouterr().out
    assert "a step of source" in out and "label, target_dbscan" in out and "whole schedule" in out
    assert not (whole / "dry").exists()


def test_a_phase_whose_predecessor_is_missing(whole, capsys):
    assert "no " in fails(arguments(whole, "new", "--phase", "source_mutual"), capsys)
    wrong = arguments(whole, "new", "--phase", "target_kmeans", "--start-from", whole / "run/source.pth")
    assert "starts from target_dbscan.pth" in fails(wrong, capsys)
    wrong = arguments(whole, "new", "--phase", "source_mutual", "--start-from", whole / "run/best.pth")
    assert "of one network" in fails(wrong, capsys)


def test_fewer_images_than_clusters(whole, capsys):
    assert "--clusters 5000 is more than the" in fails(arguments(whole, "new", "--clusters", 5000), capsys)


def test_outliers_among_the_labels_and_a_missing_partner(whole, capsys, tmp_path):
    labels = tmp_path / "labels.txt"
    name = next((whole / "source/market1501_train").iterdir()).name
    labels.write_text(f"{name} -1\n")
    assert "leave outliers out" in fails(arguments(whole, "new", "--source-labels", labels), capsys)
    broken = tmp_path / "source"
    shutil.copytree(whole / "source", broken)
    (broken / "market1501_train_sysumm01" / name).unlink()
    command = arguments(whole, "new", "--source-dir", broken)
    assert name in fails(command, capsys)


def test_several_processes_are_refused(whole, capsys, monkeypatch):
    monkeypatch.setattr("sdcl.distributed.world", lambda: 2)
    assert "without torchrun" in fails(arguments(whole, "new"), capsys)


def test_regdbs_later_trials_start_from_the_first_ones_source():
    config = PRESETS["regdb"]
    assert train_aml.for_trial(config, [1, 2], 1) == config
    later = train_aml.for_trial(config, [1, 2], 2)
    assert later.phases == ("target_kmeans",) and later.start_from == config.run_dir / "trial-1/source_mutual.pth"
