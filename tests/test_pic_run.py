"""Whole runs of PIC on a few drawn people: trained, stopped, gone on with, tested, reported, compared, exported."""

import gc
import importlib
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pic_weights import write_imagenet
from tiny_sets import make_regdb, save_image
from tiny_training import ROOT, differences, in_process

import sdcl.pic.step
import train_pic
from sdcl.data.readers import sysu
from sdcl.data.readers.regdb import prepare as prepare_regdb
from sdcl.data.sets import SETS
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.retrieval import load_test_set
from sdcl.frame.run import read_log
from sdcl.pic import PICModelConfig, PICNetwork
from sdcl.pic.batches import EpochBatches, identity_batches
from sdcl.pic.presets import PRESETS
from sdcl.pic.testing import first_gallery, move_as_published
from sdcl.pic.weights import published_state_dict

pytestmark = pytest.mark.slow

# fmt: off
NETWORK = ["--image-height", "32", "--image-width", "16", "--width", "4", "--blocks", "1", "1", "1", "1"]
TINY = [*NETWORK, "--synthetic-seed", "None", "--identities", "3", "--instances", "4", "--no-tensorboard",
        "--workers", "0", "--device", "cpu"]
# fmt: on


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Five training and three test identities in the layout of SYSU-MM01."""
    root = tmp_path_factory.mktemp("people")
    write_sysu_layout(root, SyntheticConfig(5, 3, images_per_camera=2, height=32, width=16, absence=0.0), workers=1,
                      progress=False)  # fmt: skip
    sysu.prepare(root, progress=False)
    return root


@pytest.fixture(scope="module")
def whole(people, tmp_path_factory):
    """The folder of a run of three epochs that was left in peace."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_pic.main(["demo", *TINY, "--data-dir", str(people), "--run-dir", str(folder), "--epochs", "3"])
    return folder


@pytest.fixture(scope="module")
def short(people, tmp_path_factory):
    """The folder of a run of an epoch, its images read by two workers, from a cache in the folder beside it."""
    folder = tmp_path_factory.mktemp("short") / "run"
    places = ["--data-dir", str(people), "--run-dir", str(folder), "--image-cache", str(folder.parent / "cache")]
    train_pic.main(["demo", *TINY, *places, "--epochs", "1", "--workers", "2"])
    return folder


@pytest.fixture
def program(capsys):
    return in_process(capsys)


@pytest.fixture
def pic(program, people, tmp_path):
    """pic(options): train_pic.py demo for an epoch in the folder `run`, as a command line would."""
    return lambda *options: program("train_pic", "demo", *TINY, "--data-dir", people, "--run-dir", tmp_path / "run",
                                    "--epochs", "1", *options)  # fmt: skip


# -- a run and what it leaves -----------------------------------------------------------------------------------------


def test_log_and_results(whole):
    log = read_log(whole / "log.jsonl")
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert [[name for name in line if "search" in name] for line in log] == [
        ["all_search", "all_search_pooled"], [], ["all_search", "all_search_pooled"],
    ]  # fmt: skip
    assert log[0].keys() >= {"loss", "identity", "triplet", "soft_identity", "soft_triplet", "seconds"}
    expected = 0.5 * (log[0]["identity"] + log[0]["triplet"]) + 0.5 * log[0]["soft_identity"]
    assert log[0]["loss"] == pytest.approx(expected + 0.8 * log[0]["soft_triplet"], rel=1e-5)
    results = json.loads((whole / "results.json").read_text())
    modes = ["all_search", "indoor_search", "all_search_pooled", "indoor_search_pooled"]
    assert [name for name in results if "search" in name] == modes == list(results["start"])
    tested = [line for line in log if "all_search" in line]
    best = max(tested, key=lambda line: line["all_search"]["rank1"])
    assert results["epoch"] == best["epoch"] == read_checkpoint(whole / "best.pth")["epoch"]
    assert read_checkpoint(whole / "last.pth")["config"]["model"]["classes"] == 5


def test_a_stopped_run_ends_in_the_same_bits(whole, people, tmp_path, monkeypatch):
    """Stopped within the second epoch."""
    step, seen = sdcl.pic.step.train_step, []

    def stop(*arguments):
        seen.append(len(seen))
        if len(seen) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(sdcl.pic.step, "train_step", stop)
    run = ["demo", *TINY, "--data-dir", str(people), "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    with pytest.raises(KeyboardInterrupt):
        train_pic.main([*run, "--epochs", "3"])
    gc.collect()
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 1
    monkeypatch.undo()
    train_pic.main([*run, "--epochs", "3"])
    assert [d for d in differences(whole, tmp_path / "run") if "run_dir" not in d and "resume" not in d] == []


def test_the_number_of_workers_and_a_cache_change_nothing(whole, short):
    first, cached = (read_log(folder / "log.jsonl")[0] for folder in (whole, short))
    assert len(list((short.parent / "cache").glob("*.npy"))) > 3
    assert {name for name in first if first[name] != cached[name]} <= {"seconds"}


def test_other_settings_are_refused_and_named(whole, program, people):
    command = ["demo", *TINY, "--data-dir", people, "--run-dir", whole, "--epochs", 3, "--resume"]
    assert "other settings: --margin 0.4 (was 0.3)" in program("train_pic", *command, "--margin", 0.4).error
    assert program("train_pic", *command).status == 0, "finished: nothing is trained again"


# -- tests ------------------------------------------------------------------------------------------------------------


def test_the_test_program_gives_the_runs_table(whole, program, people, tmp_path):
    tested = program("test", "demo", "--synthetic-seed", "None", "--data-dir", people, "--checkpoint",
                     whole / "best.pth", "--output", tmp_path / "t.json")  # fmt: skip
    assert tested.status == 0 and "(PIC)" in tested.out and "all search pooled" in tested.out
    table, results = (json.loads(p.read_text()) for p in (tmp_path / "t.json", whole / "results.json"))
    assert all(table[mode] == results[mode] for mode in ("all_search", "indoor_search_pooled"))


def test_the_first_gallery_chooses_the_best_epoch(people):
    config = replace(PRESETS["demo"], data_dir=people, synthetic_seed=None)
    everything = load_test_set(config)
    small = first_gallery(everything)
    (task,) = small.tasks
    assert task.mode == "all_search" and len(task.galleries) == 1 and len(everything.tasks[0].galleries) == 10
    first = everything.tasks[0]
    for own, all_of_it in ((task.query, first.query), (task.galleries[0], first.galleries[0])):
        assert [small.images[own[0]][r] for r in own[1]] == [everything.images[own[0]][r] for r in all_of_it[1]]
    assert len(small.images["visible"]) == len(task.galleries[0][1]) < len(everything.images["visible"])


def test_a_test_moves_the_mean_branches_as_often_as_the_published_one(people):
    small = first_gallery(load_test_set(replace(PRESETS["demo"], data_dir=people, synthetic_seed=None)))
    model = PICModelConfig(width=4, blocks=(1, 1, 1, 1))
    config = replace(PRESETS["demo"], model=model, mean_momentum=0.9, test_batch=3)
    network = PICNetwork(config, 2)
    for p in network.branches.parameters():
        p.data.add_(1)
    move_as_published(network, small, config)
    for m, records in small.images.items():
        moves = math.ceil(len(records) / 3)
        before, moved, trained = 0.0, *(b[m].bn1.bias for b in (network.mean_branches, network.branches))
        torch.testing.assert_close(moved, 0.9**moves * torch.full_like(moved, before) + (1 - 0.9**moves) * trained)


def test_what_is_saved_has_moved_after_its_test(short, pic, tmp_path):
    assert pic("--no-move-after-test").status == 0
    still, moved = (read_checkpoint(folder / "best.pth")["model"] for folder in (tmp_path / "run", short))
    changed = {name.split(".")[0] for name in still if not torch.equal(still[name], moved[name])}
    assert changed == {"mean_branches"}
    lines = [read_log(folder / "log.jsonl")[0] for folder in (tmp_path / "run", short)]
    assert lines[0]["all_search"] == lines[1]["all_search"]


def test_a_published_file_is_tested(program, people, tmp_path):
    torch.manual_seed(0)
    network = PICNetwork(replace(PRESETS["demo"], model=PICModelConfig(width=4, blocks=(1, 1, 1, 1))), 5)
    torch.save({"net": published_state_dict(network), "cmc": np.ones(5), "epoch": 2}, tmp_path / "published.t")
    command = ["demo", *NETWORK, "--synthetic-seed", "None", "--data-dir", people]
    tested = program("test", *command, "--checkpoint", tmp_path / "published.t", "--method", "pic")
    assert tested.status == 0 and "indoor search pooled" in tested.out


# -- the other programs -----------------------------------------------------------------------------------------------


def test_report_compare_and_export(whole, people, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "scripts")])
    monkeypatch.chdir(tmp_path)
    best = str(whole / "best.pth")
    for script, arguments in (
        ("report", [str(whole)]),
        ("compare", [str(whole), "--output", "c.png"]),
        ("export", ["embeddings", "--checkpoint", best, "--output", "e.npz"]),
        ("export", ["model", "--checkpoint", best, "--modality", "infrared", "--output", "m.pt2"]),
    ):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        importlib.import_module(script).main()
    page = (whole / "report.html").read_text()
    assert "PIC" in page and "all search pooled" in page
    with np.load("e.npz") as arrays:
        assert arrays["visible_pooled"].shape[1] == arrays["infrared_normalised"].shape[1] == 128
        assert np.allclose(np.linalg.norm(arrays["visible_normalised"], axis=1), 1, atol=1e-5)
    assert "agrees with the network" in capsys.readouterr().out
    assert Path("c.png").stat().st_size > 1000


def test_dry_run(pic, tmp_path):
    ran = pic("--dry-run", "--epochs", 5)
    assert ran.status == 0 and not (tmp_path / "run").exists()
    rows = {line.split("  ")[0]: line.split() for line in ran.out.splitlines()}
    assert rows["train"][2] == "5" and rows["test"][2] == "3" and rows["final test"][3] == "3"


def test_all_trials_of_regdb(program, tmp_path, monkeypatch):
    """The two training identities of a tiny RegDB, all trials (two here) and their mean."""
    monkeypatch.setitem(SETS, "regdb", replace(SETS["regdb"], trials=range(1, 3)))
    prepare_regdb(make_regdb(tmp_path / "regdb"), progress=False)
    write_imagenet(tmp_path / "r.pth")
    ran = program("train_pic", "regdb", *TINY, "--data-dir", tmp_path / "regdb", "--run-dir", tmp_path / "run",
                  "--identities", 2, "--epochs", 1, "--pretrained", tmp_path / "r.pth", "--no-published-counts")
    assert ran.status == 0, ran.err
    mean = json.loads((tmp_path / "run" / "results.json").read_text())
    own = [json.loads((tmp_path / "run" / f"trial-{t}" / "results.json").read_text()) for t in (1, 2)]
    for mode in ("visible_to_thermal", "thermal_to_visible_pooled"):
        values = [r[mode]["rank1"] for r in own]
        assert mean[mode]["rank1"] == pytest.approx(np.mean(values))
        assert mean[mode]["rank1_std"] == pytest.approx(np.std(values))
    assert "visible_to_thermal" in read_log(tmp_path / "run" / "trial-2" / "log.jsonl")[0]


# -- batches ----------------------------------------------------------------------------------------------------------


def test_images_and_labels_of_a_batch_belong_together(people):
    config = replace(PRESETS["demo"], data_dir=people, identities=3, instances=2, crop_padding=0, image_cache=None,
                     model=PICModelConfig(image_height=32, image_width=16))  # fmt: skip
    records = {m: sysu.train_records(people, m) for m in ("visible", "infrared")}
    draws = identity_batches(records, config)
    _, rows = next(draws.epochs(0, 1))
    batches = EpochBatches(records, draws.known, rows, config, trial=0, epoch=0)
    again = list(EpochBatches(records, draws.known, rows, config, trial=0, epoch=0))
    assert len(batches) == draws.steps
    for step, (visible, infrared, labels) in enumerate(batches):
        assert visible.shape == infrared.shape == (6, 3, 32, 16)
        for m, own in zip(("visible", "infrared"), rows, strict=True):
            assert [draws.known[c] for c in labels] == [records[m][r].identity for r in own[step]]
        assert torch.equal(visible, again[step][0]) and torch.equal(labels, again[step][2])
    other = list(EpochBatches(records, draws.known, rows, config, trial=0, epoch=1))
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(again, other, strict=True))


# -- guards -----------------------------------------------------------------------------------------------------------


def test_missing_weights(pic):
    error = pic("--pretrained", "nowhere.pth").error
    assert "no ImageNet weights at nowhere.pth" in error and "--pretrained" in error


def test_identities_of_one_modality_and_single_images(program, tmp_path):
    """Of a folder of one's own, the infrared images of an identity removed, then all but one of each."""
    root = tmp_path / "mine"
    for number, (identity, image, m) in enumerate(itertools.product(range(1, 5), (1, 2), ("visible", "infrared"))):
        save_image(root / "bounding_box_train" / m / f"{identity:04d}_c1_{image}.png", number)
    for number, (part, m) in enumerate(itertools.product(("query", "bounding_box_test"), ("visible", "infrared"))):
        save_image(root / part / f"0009_c{number}_1_{m}.png", 20 + number)
    command = ["train_pic", "folder", *TINY, "--pretrained", "None", "--data-dir", root, "--run-dir", tmp_path / "run"]
    infrared = sorted((root / "bounding_box_train" / "infrared").iterdir())
    for path in infrared:
        if path.name.endswith("_2.png") or path.name.startswith("0003"):
            path.rename(tmp_path / path.name)
    error = program(*command).error
    assert "1 of 4 training identities have visible images but no infrared ones (3)" in error
    (tmp_path / "0003_c1_1.png").rename(root / "bounding_box_train" / "infrared" / "0003_c1_1.png")
    assert "each of the 4 training identities has a single infrared image" in program(*command).error


def test_a_loss_that_is_not_finite(pic, monkeypatch):
    losses = sdcl.pic.step.pic_losses
    monkeypatch.setattr(sdcl.pic.step, "pic_losses", lambda *x: {k: v * torch.nan for k, v in losses(*x).items()})
    error = pic().error
    assert "the loss is not finite in epoch 0" in error and "soft_triplet" in error and "--learning-rate" in error


def test_several_processes_and_wrong_numbers_of_classes(pic, monkeypatch):
    assert "--classes is 4, but the training images are of 5 identities" in pic("--classes", 4).error
    assert "--identities 7, but there are 5 training identities" in pic("--identities", 7).error
    monkeypatch.setattr("sdcl.distributed.world", lambda: 2)
    assert "PIC trains in one process" in pic().error
