"""The synthetic data set: the same from every machine and every number of processes, in the real sets' layouts."""

import hashlib
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcl.data.synthetic import (
    SyntheticConfig,
    draw_image,
    identity_splits,
    image_counts,
    regdb_shape,
    sysu_shape,
    write_regdb_layout,
    write_sysu_layout,
)
from sdcl.data.synthetic.__main__ import main
from sdcl.data.synthetic.layouts import FINISHED, UNFINISHED
from sdcl.data.synthetic.people import SKIN, draw_person
from sdcl.data.synthetic.randomness import IMAGE, Draws, unit_vector
from sdcl.data.synthetic.settings import CAMERAS, INFRARED_CAMERAS, VISIBLE_CAMERAS
from sdcl.errors import UserError

TINY = SyntheticConfig(train_identities=4, test_identities=3, images_per_camera=(1, 3), height=32, width=16, seed=5)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def write(root: Path, config: SyntheticConfig = TINY, workers: int = 1) -> dict[str, bytes]:
    write_sysu_layout(root, config, workers=workers, progress=False)
    return files_of(root)


# Pixels


def test_renderer_gives_the_same_pixels_on_every_machine():
    """The guarantee is on the renderer's output; JPEG bytes depend on the encoder that Pillow was built with.

    After an intended change of the pixels, raise RENDERER in layouts.py and put the new checksum here.
    """
    digest = hashlib.sha256()
    config = SyntheticConfig(
        seed=7, own_infrared=0.3, occlusion=0.5, view_range=1.0, camera_strength=1.0, crop_jitter=1.0
    )
    for identity in range(1, 9):
        for camera in range(1, 9):
            digest.update(draw_image(config, identity, camera, image=1 + identity % 3).tobytes())
    assert digest.hexdigest()[:16] == "e8804d9b7393c70b"


@pytest.mark.parametrize(("height", "width"), [(16, 8), (32, 16), (97, 51), (288, 144)])
def test_every_size_gives_pictures_of_the_asked_form(height, width):
    config = replace(TINY, height=height, width=width)
    visible, infrared = draw_image(config, 1, 1, 1), draw_image(config, 1, 3, 1)
    for picture in (visible, infrared):
        assert picture.shape == (height, width, 3) and picture.dtype == np.uint8 and picture.std() > 10
    assert (infrared == infrared[..., :1]).all()
    assert (visible != visible[..., :1]).any()


def test_images_differ_between_identities_cameras_images_and_seeds():
    addresses = [(TINY, 1, 1, 1), (TINY, 2, 1, 1), (TINY, 1, 2, 1), (TINY, 1, 1, 2), (replace(TINY, seed=6), 1, 1, 1)]
    assert len({draw_image(*address).tobytes() for address in addresses}) == len(addresses)


def test_same_person_wears_the_same_in_all_sizes_and_difficulties():
    """An image scaled down resembles the one drawn small: size changes the sampling, not the person or the place."""
    calm = SyntheticConfig(seed=2, camera_strength=0, occlusion=0, height=128, width=64)
    large = draw_image(calm, 3, 4, 1).astype(float).reshape(32, 4, 16, 4, 3).mean((1, 3))
    small = draw_image(replace(calm, height=32, width=16), 3, 4, 1).astype(float)
    figure = np.s_[6:26, 5:11]
    assert np.corrcoef(large[figure].ravel(), small[figure].ravel())[0, 1] > 0.8


def torso_levels(config: SyntheticConfig, camera: int, identities: range) -> np.ndarray:
    """Mean grey of the middle of the chest for each identity, over four images."""
    rows, columns = (
        slice(config.height * 3 // 10, config.height * 4 // 10),
        slice(config.width * 2 // 5, config.width * 3 // 5),
    )
    weights = np.array([0.4, 0.45, 0.15])
    return np.array([
        np.mean([draw_image(config, identity, camera, image)[rows, columns] @ weights for image in range(1, 5)])
        for identity in identities
    ])  # fmt: skip


@pytest.mark.slow
def test_own_infrared_decides_whether_infrared_brightness_follows_the_visible():
    people = range(1, 41)
    calm = SyntheticConfig(height=48, width=24, seed=1, occlusion=0, camera_strength=0, crop_jitter=0, view_range=0)
    visible = torso_levels(calm, 1, people)
    following = [
        np.corrcoef(visible, torso_levels(replace(calm, own_infrared=own), 3, people))[0, 1] for own in (0.0, 0.5, 1.0)
    ]
    assert following[0] > 0.9
    assert abs(following[2]) < 0.4
    assert following[0] > following[1] > following[2]


def test_own_infrared_leaves_visible_images_and_the_infrared_geometry_alone():
    other = replace(TINY, own_infrared=1.0)
    assert (draw_image(TINY, 1, 4, 1) == draw_image(other, 1, 4, 1)).all()
    changed = (draw_image(TINY, 1, 6, 1) != draw_image(other, 1, 6, 1))[..., 0]
    assert changed.any() and not changed[:, 0].any() and not changed[:, -1].any()


def test_second_colours_of_patterns_can_be_told_in_grey():
    for identity in range(1, 60):
        dyes = draw_person(0, identity).dyes
        assert dyes[SKIN].own_infrared >= 195
        for first in (4, 6):
            assert abs(dyes[first].grey - dyes[first + 1].grey) > 30
            assert abs(dyes[first].own_infrared - dyes[first + 1].own_infrared) >= 50


# Random numbers


def test_draws_are_those_of_their_address():
    def first(*address: int) -> float:
        return Draws(3, IMAGE, *address).uniform()

    assert first(1, 2, 3) == first(1, 2, 3)
    assert len({first(i, c, k) for i in range(3) for c in range(3) for k in range(3)}) == 27
    assert Draws(3, IMAGE, 1, 2, 3).uniform() == 0.7195901471966127  # a fixed value of the Philox stream


def test_draws_are_in_range_and_even():
    draws = Draws(0, IMAGE)
    assert sorted(draws.permutation(50)) == list(range(50))
    assert Counter(draws.below(4) for _ in range(4000)).most_common()[-1][1] > 900
    noise = draws.noise(100, 100)
    assert noise.shape == (100, 100) and abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03


def test_unit_vector_follows_cosine_and_sine():
    for turn in np.linspace(-1.5, 1.5, 301):
        cosine, sine = unit_vector(float(turn))
        assert abs(cosine * cosine + sine * sine - 1) < 1e-12
        assert abs(np.angle((cosine + 1j * sine) * np.exp(-2j * np.pi * turn), deg=True)) < 1


# Identities and counts


def test_splits_are_mixed_and_complete():
    splits = identity_splits(SyntheticConfig(train_identities=60, test_identities=40))
    assert {name: len(numbers) for name, numbers in splits.items()} == {"train": 45, "val": 15, "test": 40}
    assert sorted(sum(splits.values(), [])) == list(range(1, 101))
    assert splits["test"][0] < 20 and splits["test"][-1] > 80


def test_counts_stay_in_range_and_everybody_is_seen_in_both_modalities():
    config = SyntheticConfig(train_identities=100, test_identities=50, images_per_camera=(2, 5), absence=0.5)
    counts = image_counts(config)
    assert set(sum(counts.values(), ())) == {0, 2, 3, 4, 5}
    for row in counts.values():
        for cameras in (VISIBLE_CAMERAS, INFRARED_CAMERAS):
            assert any(row[camera - 1] for camera in cameras)
    assert all(row == (12,) * 6 for row in image_counts(SyntheticConfig(absence=0)).values())


def test_sysu_shape_has_the_published_numbers():
    config = sysu_shape()
    splits, counts = identity_splits(config), image_counts(config)
    assert {name: len(numbers) for name, numbers in splits.items()} == {"train": 296, "val": 99, "test": 96}

    def total(numbers: list[int], cameras: tuple[int, ...]) -> int:
        return sum(counts[number][camera - 1] for number in numbers for camera in cameras)

    train = splits["train"] + splits["val"]
    assert (total(train, VISIBLE_CAMERAS), total(train, INFRARED_CAMERAS)) == (22_258, 11_909)
    assert total(splits["test"], INFRARED_CAMERAS) == 3_803
    folders = {camera: sum(counts[number][camera - 1] > 0 for number in splits["test"]) for camera in CAMERAS}
    assert folders[1] + folders[2] == 112 and sum(folders[camera] for camera in VISIBLE_CAMERAS) == 301
    for row in counts.values():
        assert any(row[c - 1] for c in VISIBLE_CAMERAS) and any(row[c - 1] for c in INFRARED_CAMERAS)
    assert len(set(sum(counts.values(), ()))) > 5  # folders are unequal


def test_regdb_shape_has_the_published_numbers():
    assert (regdb_shape().train_identities, regdb_shape().test_identities) == (206, 206)


@pytest.mark.parametrize(
    "change",
    [
        {"train_identities": 1},
        {"test_identities": 0},
        {"images_per_camera": (4, 2)},
        {"images_per_camera": 0},
        {"height": 4},
        {"seed": -1},
        {"own_infrared": 1.5},
        {"occlusion": float("nan")},
        {"counts": ((1,) * 6,)},
        {"counts": ((1,) * 5,) * 7},
    ],
)
def test_impossible_configs_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(TINY, **change)


# Files


def test_sysu_layout_on_disk(tmp_path):
    files = write(tmp_path)
    lists = {
        name: [int(number) for number in files.pop(f"exp/{name}_id.txt").split(b",")]
        for name in ("train", "val", "test")
    }
    assert lists == identity_splits(TINY)
    assert json.loads(files.pop(FINISHED))["layout"] == "SYSU-MM01"
    expected = {
        f"cam{camera}/{number:04d}/{image:04d}.jpg"
        for number, row in image_counts(TINY).items()
        for camera, count in zip(CAMERAS, row, strict=True)
        for image in range(1, count + 1)
    }
    assert set(files) == expected
    assert not any(folder.is_dir() and not any(folder.iterdir()) for folder in tmp_path.rglob("*"))


def test_an_image_drawn_alone_is_that_of_the_set(tmp_path):
    write(tmp_path)
    for path in sorted(tmp_path.glob("cam*/*/*.jpg")):
        number, camera, image = int(path.parent.name), int(path.parent.parent.name[3:]), int(path.stem)
        alone, encoded = draw_image(TINY, number, camera, image), io.BytesIO()
        Image.fromarray(alone).save(encoded, "jpeg", quality=92, subsampling=0)
        assert path.read_bytes() == encoded.getvalue()
        decoded = np.asarray(Image.open(path))
        assert np.abs(decoded.astype(int) - alone).mean() < 8  # what JPEG loses of the noise
        if camera in INFRARED_CAMERAS:
            assert (decoded == decoded[..., :1]).all()


def test_any_number_of_processes_writes_the_same_files(tmp_path):
    assert write(tmp_path / "one", workers=1) == write(tmp_path / "two", workers=2)


def test_exact_counts_are_written(tmp_path):
    table = tuple((k % 3, 1, 2, 0, 1, k % 2) for k in range(7))
    files = write(tmp_path, replace(TINY, counts=table))
    written = Counter(name[:4] for name in files if name.endswith(".jpg"))
    assert {f"cam{camera}": sum(row[camera - 1] for row in table) for camera in (1, 2, 3, 5, 6)} == written


def test_a_complete_set_is_left_alone(tmp_path):
    write(tmp_path)
    probe = next(tmp_path.glob("cam*/*/*.jpg"))
    probe.write_bytes(b"touched")
    write(tmp_path)
    assert probe.read_bytes() == b"touched"


@pytest.mark.parametrize("after", [0, 3])
def test_an_interrupted_set_is_finished_by_repeating(tmp_path, monkeypatch, after):
    whole = write(tmp_path / "whole")
    drawn = []

    def interrupted(*address: int) -> np.ndarray:
        if len(drawn) == after:
            raise KeyboardInterrupt
        drawn.append(address)
        return draw_image(*address)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sdcl.data.synthetic.layouts.draw_image", interrupted)
        write(tmp_path / "broken")
    left = files_of(tmp_path / "broken")
    assert UNFINISHED in left and FINISHED not in left and not any(name.startswith("exp/") for name in left)
    for half in (tmp_path / "broken").glob("cam*/*/*.jpg"):
        half.write_bytes(half.read_bytes()[:20])  # as a kill in the middle of a write leaves a file
    assert write(tmp_path / "broken") == whole


def test_a_marker_cut_short_before_anything_else_does_not_block(tmp_path):
    (tmp_path / UNFINISHED).write_text('{"layout":')
    assert FINISHED in write(tmp_path)


@pytest.mark.parametrize("name", [FINISHED, UNFINISHED])
def test_another_config_or_layout_is_refused(tmp_path, name):
    write(tmp_path)
    (tmp_path / FINISHED).rename(tmp_path / name)
    with pytest.raises(UserError, match="another config"):
        write(tmp_path, replace(TINY, seed=6))
    with pytest.raises(UserError, match="another config"):
        write_regdb_layout(tmp_path, TINY, workers=1, progress=False)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "cam1").mkdir()
    with pytest.raises(UserError, match="not of a synthetic set"):
        write(tmp_path)
    assert not (tmp_path / UNFINISHED).exists()


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "set")


def test_regdb_layout_on_disk(tmp_path):
    config = replace(TINY, test_identities=4)
    write_regdb_layout(tmp_path, config, workers=1, progress=False)
    trials = []
    for trial in range(1, 11):
        seen = {}
        for part in ("train", "test"):
            for modality, folder in (("visible", "Visible"), ("thermal", "Thermal")):
                lines = (tmp_path / f"idx/{part}_{modality}_{trial}.txt").read_text().splitlines()
                labels = Counter(int(line.split()[1]) for line in lines)
                assert labels == {label: 10 for label in range(4)}
                paths = [line.split()[0] for line in lines]
                assert all(
                    (tmp_path / path).is_file() and path.startswith(folder) and path.endswith(".bmp") for path in paths
                )
                seen[part, modality] = {
                    path.split("/")[1]: line.split()[1] for path, line in zip(paths, lines, strict=True)
                }
            assert seen[part, "visible"] == seen[part, "thermal"]
        assert not set(seen["train", "visible"]) & set(seen["test", "visible"])
        trials.append(frozenset(seen["train", "visible"]))
    assert len(set(trials)) > 1
    assert len(list(tmp_path.glob("Visible/*/*.bmp"))) == len(list(tmp_path.glob("Thermal/*/*.bmp"))) == 80
    bitmap = np.asarray(Image.open(tmp_path / "Thermal/3/thermal_0003_02.bmp"))
    assert (bitmap == draw_image(config, 3, 8, 2)).all()  # no loss: the guarantee on pixels holds for the files


# Command line


def test_command_line_writes_the_set_its_options_name(tmp_path):
    options = (
        "--train-identities 4 --test-identities 3 --images-per-camera 1 3 --height 32 --width 16 --seed 5 --workers 1"
    )
    main(["sysu", str(tmp_path / "set"), *options.split()])
    assert files_of(tmp_path / "set") == write(tmp_path / "same")


@pytest.mark.parametrize("options", ["--published-shape --train-identities 4", "--own-infrared 2"])
def test_command_line_refuses_contradictions(tmp_path, options):
    with pytest.raises(UserError, match="identities|own_infrared"):
        main(["sysu", str(tmp_path / "set"), *options.split()])
    assert not (tmp_path / "set").exists()
