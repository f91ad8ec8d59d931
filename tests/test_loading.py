"""Loaders: the same batches for any number of workers and processes, and readable failures."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdcl.data.images import open_image
from sdcl.data.loading import evaluation_loader, training_loader
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.data.transforms import evaluation_transform
from sdcl.errors import UserError
from sdcl.training.views import InfraredTransform, VisibleTransform

VIEWS = [VisibleTransform(24, 12, False), VisibleTransform(24, 12, True)]


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """24 images of 6 identities and 2 cameras; every image of its own random content."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(24):
        path = str(tmp_path / f"{n:02d}.png")
        Image.fromarray(rng.integers(0, 256, (30, 14, 3), dtype=np.uint8)).save(path)
        made.append(ImageRecord(path, n // 4, n % 2))
    return made


def make_batches(records: list[ImageRecord], steps: int = 3, seed: int = 0) -> PseudoIdentityBatches:
    return PseudoIdentityBatches([r.identity for r in records], [r.camera for r in records], 2, 4, steps, seed)


def load(records, transforms=VIEWS, workers=0, seed=5, part=(0, 1)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images, rows) for images, rows in
            training_loader(records, transforms, make_batches(records), workers, seed, part)]


def equal(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for first, second in zip(a, b, strict=True)
                                    for x, y in zip(first, second, strict=True))


def test_batches_hold_view_one_then_view_two(records) -> None:
    loader = training_loader(records, VIEWS, make_batches(records), 0, 5)
    assert len(loader) == 3
    for (images, rows), expected in zip(loader, make_batches(records), strict=True):
        assert images.shape == (16, 3, 24, 12) and images.dtype == torch.float32
        assert rows.dtype == torch.int64 and rows.tolist() == expected * 2
        exchanged = (images[:, 0] == images[:, 1]).flatten(1).all(1)
        assert exchanged.tolist() == [False] * 8 + [True] * 8
    images, rows = next(iter(training_loader(records, [InfraredTransform(24, 12)], make_batches(records), 0, 5)))
    assert images.shape == (8, 3, 24, 12) and len(rows) == 8


def test_results_do_not_depend_on_workers_or_on_the_global_generators(records) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    alone = load(records, workers=0)
    assert torch.equal(torch.get_rng_state(), state)  # and leave them as they were
    torch.manual_seed(2)
    assert equal(alone, load(records, workers=2))
    assert equal(alone, load(records, workers=1))
    assert not equal(alone, load(records, seed=6))


def test_every_place_and_view_draws_for_itself(records) -> None:
    """The same image twice in a batch, and its two views, are different pictures."""
    one = records[:2]  # each batch: the two rows in turn, many times
    batches = PseudoIdentityBatches([0, 0], [0, 1], 1, 8, 2, 0)
    plain = VisibleTransform(24, 12, False)
    images = torch.cat([images for images, _ in training_loader(one, [plain, plain], batches, 0, 0)])
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images) == 32


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("transforms", [VIEWS, VIEWS[:1]])
def test_parts_of_processes_make_up_the_whole(records, transforms, processes: int) -> None:
    whole = load(records, transforms)
    parts = [load(records, transforms, part=(p, processes)) for p in range(processes)]
    for step, (images, rows) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert all(torch.equal(part[step][1], rows) for part in parts)
    with pytest.raises(ValueError, match="equal parts"):
        load(records, part=(0, 3))


def test_evaluation_order_and_last_batch(records) -> None:
    transform = evaluation_transform(24, 12, "bicubic")
    paths = [record.path for record in reversed(records)]
    expected = torch.stack([transform(open_image(path)) for path in paths])
    for workers in (0, 2):
        batches = list(evaluation_loader(paths, transform, 7, workers))
        assert [len(batch) for batch in batches] == [7, 7, 7, 3]
        assert torch.equal(torch.cat(batches), expected)
    assert list(evaluation_loader([], transform, 7, 0)) == []


def break_file(kind: str, path: str) -> None:
    data = Path(path).read_bytes()
    contents = {"truncated": data[: len(data) // 2], "text": b"no image at all", "empty": b"", "header": data[:20]}
    if kind == "missing":
        os.remove(path)
    elif kind == "folder":
        os.remove(path)
        os.mkdir(path)
    else:
        Path(path).write_bytes(contents[kind])


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "header", "missing", "folder"])
def test_broken_files_are_named(records, kind: str) -> None:
    path = records[5].path
    break_file(kind, path)
    with pytest.raises(UserError) as caught:
        open_image(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_workers_failure_reaches_the_user_in_one_line(records, workers: int) -> None:
    for record in records:
        break_file("truncated", record.path)
    transform = evaluation_transform(24, 12, "lanczos")
    for loader in (training_loader(records, VIEWS, make_batches(records), workers, 0),
                   evaluation_loader([record.path for record in records], transform, 4, workers)):
        with pytest.raises(UserError) as caught:
            list(loader)
        assert str(caught.value).count("\n") == 0 and str(Path(records[0].path).parent) in str(caught.value)


def test_grey_and_palette_and_alpha_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "1"):
        path = str(tmp_path / f"{mode}.png")
        Image.new(mode, (4, 6)).save(path)
        assert open_image(path).mode == "RGB" and open_image(path).size == (4, 6)
