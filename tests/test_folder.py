"""Other people's images: names read by the documented rule, both directions, and the programs as a user calls them."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from tiny_sets import TINY_RUN, draw_folder, save_image

import test_sdcl
import train_sdcl
from sdcl.config import PRESETS, Config
from sdcl.data.readers import folder
from sdcl.data.records import MODALITIES, ImageRecord
from sdcl.data.training_set import load_training_set
from sdcl.errors import UserError
from sdcl.frame.retrieval import chance_table, evaluate, load_test_set
from sdcl.report import write_report
from sdcl.report.run_files import read_run
from sdcl.training.method import METHOD

COMMON = ["folder", "--device", "cpu", "--workers", "0"]
TRAINING = {
    "0002_c1s1_000451_03_visible.jpg": ("visible", 2, 1),
    "0010_c12_RGB.png": ("visible", 10, 12),
    "0002_c3_x-ir-7.PNG": ("infrared", 2, 3),
    "7_c6.thermal.bmp": ("infrared", 7, 6),
    "visible/0003_c1_a.jpeg": ("visible", 3, 1),
    "Infrared/night/0003_c2_b.jpg": ("infrared", 3, 2),
    "-1_c1s1_000001_rgb.jpg": None,
    "0005_c1_infrared.txt": None,
    ".0005_c1_infrared.jpg": None,
    ".thumbnails/small.jpg": None,
}
"""File → its modality, identity and camera; None: left out."""


def fill(root: Path, part: str, names: list[str]) -> None:
    for number, name in enumerate(names):
        path = root / part / name
        save_image(path.with_suffix(".png"), number)
        os.replace(path.with_suffix(".png"), path)


def small_set(root: Path, query: list[str], gallery: list[str]) -> Path:
    fill(root, "bounding_box_train", ["1_c1_rgb.png", "1_c2_ir.png"])
    fill(root, "query", query)
    fill(root, "bounding_box_test", gallery)
    return root


def test_names_are_parsed_and_sorted(tmp_path: Path) -> None:
    fill(tmp_path, "bounding_box_train", list(TRAINING))
    for modality in MODALITIES:
        expected = [
            ImageRecord(str(tmp_path / "bounding_box_train" / name), *found[1:])
            for name, found in sorted(TRAINING.items())
            if found is not None and found[0] == modality
        ]
        assert len(expected) == 3 and folder.train_records(tmp_path, modality) == expected


def test_linked_sub_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "bounding_box_train").mkdir()
    for name in ("rgb", "ir"):
        fill(tmp_path, f"elsewhere/{name}", ["1_c1_a.jpg"])
        (tmp_path / "bounding_box_train" / name).symlink_to(tmp_path / "elsewhere" / name)
    records = [folder.train_records(tmp_path, m) for m in MODALITIES]
    assert [Path(r.path).parent.name for part in records for r in part] == ["rgb", "ir"]


@pytest.mark.parametrize(("name", "message"), [
    ("person7_c1_visible.jpg", "does not begin with <id>_c<camera>; name images <id>_c"),
    ("0007_visible.jpg", "does not begin with <id>_c<camera>"),
    ("0007_c2_0001.jpg", "says no modality; .*0007_c2_0001_infrared.jpg; .*visible, rgb, infrared, ir, thermal"),
    ("0007_c2_irvisible.jpg", "says no modality"),
    ("visible/0007_c2_ir.jpg", "says both modalities"),
])
def test_a_name_of_another_form_is_refused(tmp_path: Path, name: str, message: str) -> None:
    fill(tmp_path, "bounding_box_train", ["0001_c1_visible.jpg", name])
    with pytest.raises(UserError, match=message) as caught:
        folder.train_records(tmp_path, "visible")
    assert str(tmp_path / "bounding_box_train" / name) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bounding_box_train: no such folder; .*query and bounding_box_test.*demo.sh"):
        folder.train_records(tmp_path, "visible")
    fill(tmp_path, "bounding_box_train", ["1_c1_rgb.jpg"])
    with pytest.raises(UserError, match="bounding_box_train: it holds no infrared image"):
        folder.train_records(tmp_path, "infrared")
    with pytest.raises(UserError, match="query: no such folder"):
        folder.test_set(tmp_path)
    small_set(tmp_path, ["1_c1_rgb.png", "-1_c2_ir.png"], ["1_c2_rgb.png"])
    with pytest.raises(UserError, match="nothing to retrieve across"):
        folder.test_set(tmp_path)


def test_one_direction(tmp_path: Path) -> None:
    gallery = ["0000_c1_rgb.png", "1_c1_rgb.png", "-1_c1_rgb.png", "1_c2_ir.png"]
    test = folder.test_set(small_set(tmp_path, ["2_c2_ir.png", "1_c2_ir.png"], gallery))
    (task,) = test.tasks
    assert task.mode == "infrared_to_visible"
    assert [r.identity for r in test.images["infrared"]] == [1, 2]  # the gallery's infrared image is not in this test
    assert [r.identity for r in test.images["visible"]] == [0, 1]  # distractors stay, junk does not
    assert test.of(task.query)[0].tolist() == [1, 2] and test.of(task.galleries[0])[1].tolist() == [1, 1]


def test_both_directions_cover_the_whole_gallery(tmp_path: Path) -> None:
    query = ["1_c1_ir.png", "2_c1_ir.png", "2_c1_rgb.png"]
    gallery = ["1_c1_x_ir.png", "1_c1_x_rgb.png", "2_c1_x_ir.png", "2_c1_x_rgb.png", "3_c1_x_rgb.png"]
    test = folder.test_set(small_set(tmp_path, query, gallery))
    paths = {m: [os.path.relpath(record.path, tmp_path) for record in records] for m, records in test.images.items()}
    names = {t.mode: [[paths[m][r] for r in rows] for m, rows in (t.query, *t.galleries)] for t in test.tasks}
    assert list(names) == ["infrared_to_visible", "visible_to_infrared"]
    assert names["infrared_to_visible"] == [
        ["query/1_c1_ir.png", "query/2_c1_ir.png"],
        ["bounding_box_test/1_c1_x_rgb.png", "bounding_box_test/2_c1_x_rgb.png", "bounding_box_test/3_c1_x_rgb.png"],
    ]
    assert names["visible_to_infrared"] == [
        ["query/2_c1_rgb.png"],
        ["bounding_box_test/1_c1_x_ir.png", "bounding_box_test/2_c1_x_ir.png"],
    ]
    counts = {row.what: row.found for row in folder.verify(tmp_path).rows}
    assert counts["infrared to visible, gallery images"] == 3 and counts["visible to infrared, queries"] == 1
    assert counts["infrared to visible, identities in both"] == 2 and counts["visible cameras"] == "1"


def test_rank_k_counts_images_and_no_camera_is_removed(tmp_path: Path) -> None:
    """Query of camera 3, gallery of camera 2 (which SYSU-MM01's rules remove), the right image after six of another."""
    gallery = [*(f"2_c2_{n}_rgb.png" for n in range(6)), "3_c2_rgb.png"]
    config = _config(small_set(tmp_path, ["3_c3_ir.png"], gallery))
    test = load_test_set(config)
    visible = torch.tensor([[1.0, 0.1 * n] for n in range(7)])  # ever farther from the query
    embeddings = {m: {"deep": x, "shallow": x} for m, x in (("infrared", visible[:1]), ("visible", visible))}
    table = evaluate(METHOD, test, embeddings, config, final=True)["infrared_to_visible"]
    assert (table["rank5"], table["rank10"], table["mAP"]) == (0, 1, pytest.approx(1 / 7))
    assert chance_table(test, config)["infrared_to_visible"]["rank1"] == pytest.approx(1 / 7)


def test_query_and_gallery_of_other_people(tmp_path: Path) -> None:
    small_set(tmp_path, ["1_c1_ir.png"], ["2_c1_rgb.png"])
    with pytest.raises(UserError, match="no image of a query's identity"):
        load_test_set(_config(tmp_path))


def test_settings_of_other_data_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trial belongs to RegDB alone"):
        _config(tmp_path, trial=3)
    with pytest.raises(UserError, match="--synthetic-seed 4 draws people in the layouts of SYSU-MM01, RegDB and"):
        load_training_set(_config(tmp_path, synthetic_seed=4), 0)


def _config(root: Path, **changes) -> Config:
    return dataclasses.replace(PRESETS["folder"], data_dir=root, **changes)


# -- the programs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Drawn people in this form: the training images in sub-folders, the test's modality in the names."""
    return draw_folder(tmp_path_factory.mktemp("mine"))


@pytest.mark.slow
def test_training_test_and_report(people: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    options = ["--heads", "4", "--workers", "0", "--crop-padding", "3", "--association-k", "10", "--device", "cpu"]
    options += ["--k1", "4", "--k1-visible-stage2", "4", "--k2", "2"]
    train_sdcl.main(["folder", *TINY_RUN[1:], *options, "--data-dir", str(people), "--run-dir", str(run)])
    said = capsys.readouterr().out
    assert "visible training identities" in said and "infrared to visible, queries" in said
    results = json.loads((run / "results.json").read_text())
    modes = ["infrared_to_visible", "visible_to_infrared"]
    assert [mode for mode in results if mode in modes] == modes
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == [1, 2]
    # The test during training is the final one here, and its first mode selects.
    best = max(log, key=lambda line: line[modes[0]]["rank1"])
    assert results["epoch"] == best["epoch"]
    assert results[modes[0]]["rank1"] == pytest.approx(best[modes[0]]["rank1"])
    assert 0 < results["chance"][modes[0]]["rank1"] < 1

    test_sdcl.main([*COMMON, "--checkpoint", str(run / "best.pth"), "--data-dir", str(people)])
    tested = json.loads((run / "test-best.json").read_text())
    assert tested[modes[1]] == pytest.approx(results[modes[1]])
    assert "warning" not in capsys.readouterr().out  # of other training images

    for name in ("query", "bounding_box_test"):  # all that a test needs
        (tmp_path / name).symlink_to(people / name)
    test_sdcl.main([*COMMON, "--checkpoint", str(run / "best.pth"), "--data-dir", str(tmp_path)])
    assert "no prepared training images" in capsys.readouterr().out
    assert json.loads((run / "test-best.json").read_text()) == tested

    assert read_run(run).published is None
    page = write_report(run).read_text()
    assert "Infrared to visible" in page and "Visible to infrared" in page and 'class="published"' not in page

