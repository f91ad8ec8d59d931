"""The fast training views: equal to the described chain to the last bit, one pool of processes, little memory."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter

from sdcl.config import PRESETS
from sdcl.data import loading
from sdcl.data.augment import jitter as jitter_module
from sdcl.data.augment import lines as lines_module
from sdcl.data.augment.jitter import Jitter, draw_jitter, jitter
from sdcl.data.augment.lines import Lines, as_lines, as_pixels, resized
from sdcl.data.images import open_image
from sdcl.data.loading import PIECE, StepLoader, Stream, training_loader
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.data.transforms import resize
from sdcl.training.views import InfraredTransform, Source, TrainingBatches, ViewOfBytes, VisibleTransform

SIZE, PADDING = (32, 16), 3


def smooth(seed: int, height: int, width: int) -> np.ndarray:
    """Colours that go over into each other, with grey, black and white places."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    coarse[:2, :2] = coarse[:2, :2, :1]
    coarse[2, 2], coarse[3, 3] = 0, 255
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


# -- colour jitter -----------------------------------------------------------------------------------------------------


def test_jitter_is_torchvisions_to_the_last_bit() -> None:
    steps = ColorJitter(0.5, 0.5, 0.5, 0.5)
    for seed in range(60):
        pixels = smooth(seed, 30 + seed, 17)
        torch.manual_seed(seed)
        expected = np.array(steps(Image.fromarray(pixels)))
        torch.manual_seed(seed)
        lines = as_lines(pixels, 32, 16)
        changed = lines._replace(values=jitter(lines.values, draw_jitter(steps)))
        assert np.array_equal(as_pixels(changed), expected)


def test_colours_turn_as_in_pillow() -> None:
    """Every green and blue with each fifth red, each with another turn, through RGB, HSV and back."""
    values = np.arange(256, dtype=np.uint8)
    lines = np.empty((256, 3, 256), np.uint8)
    lines[:, 1], lines[:, 2] = values[:, None], values
    for red in range(0, 256, 5):
        lines[:, 0] = red
        draws = Jitter((3, 1, 0, 2), (1.0, 1.0, 1.0, (red * 37 % 255 - 127) / 255))
        assert np.array_equal(jitter_module._in_lines(lines, draws), jitter_module._by_pillow(lines, draws)), red


def test_where_pillow_rounds_otherwise_pillow_is_used(monkeypatch) -> None:
    assert jitter_module._as_pillow_does()
    monkeypatch.setattr(jitter_module, "_as_pillow_does", lambda: False)
    monkeypatch.setattr(jitter_module, "_in_lines", lambda *_: pytest.fail("the compiled code was used"))
    pixels, steps = smooth(0, 9, 7), ColorJitter(0.5, 0.5, 0.5, 0.5)
    torch.manual_seed(0)
    expected = np.array(steps(Image.fromarray(pixels)))
    torch.manual_seed(0)
    changed = jitter(as_lines(pixels, 9, 7).values, draw_jitter(steps))
    assert np.array_equal(as_pixels(Lines(changed, True)), expected) and not np.array_equal(expected, pixels)


def test_a_jitter_that_leaves_an_operation_out_is_refused() -> None:
    with pytest.raises(ValueError, match="all four operations"):
        draw_jitter(ColorJitter(0.5, 0.5, 0.5))


# -- resize, crop and mirroring ----------------------------------------------------------------------------------------


def test_lines_are_resized_moved_and_mirrored_as_by_pillow() -> None:
    """Images of every proportion, larger and smaller than they become, so that Pillow begins with either direction."""
    rng, directions = np.random.default_rng(0), set()
    for _ in range(150):
        h, w, height, width = (int(n) for n in rng.integers(1, 80, 4))
        down, right = int(rng.integers(-height, height + 1)), int(rng.integers(-width, width + 1))
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        lines, mirror = as_lines(pixels, height, width), bool(rng.integers(2))
        assert np.array_equal(as_pixels(lines), pixels)
        small = np.asarray(resize(height, width, "bilinear")(Image.fromarray(pixels)))
        expected = np.zeros_like(small)
        expected[max(down, 0) : height + down, max(right, 0) : width + right] = small[
            max(-down, 0) : height - down, max(-right, 0) : width - right
        ]
        expected = expected[:, ::-1] if mirror else expected
        for way in (lines_module._by_lines, lines_module._by_pillow):
            assert np.array_equal(way(lines, height, width, down, right, mirror), expected), (h, w, height, width)
        directions.add(lines.columns)
    assert directions == ({True, False} if lines_module.EITHER_FIRST else {True}) and lines_module._as_pillow_does()


def test_where_pillow_resizes_otherwise_pillow_is_used(monkeypatch) -> None:
    monkeypatch.setattr(lines_module, "_as_pillow_does", lambda: False)
    monkeypatch.setattr(lines_module, "_by_lines", lambda *_: pytest.fail("the compiled code was used"))
    pixels = smooth(0, 40, 30)
    expected = np.asarray(Image.fromarray(pixels).resize((16, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(resized(as_lines(pixels, 32, 16), 32, 16), expected)


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """40 images of 4 identities and 2 cameras, each of its own size."""
    made = []
    for n in range(40):
        path = str(tmp_path / f"{n:02d}.png")
        Image.fromarray(smooth(n, 20 + n, 11 + n % 7)).save(path)
        made.append(ImageRecord(path, n // 10, n % 2))
    return made


def batches_of(records: list[ImageRecord], seed: int) -> PseudoIdentityBatches:
    return PseudoIdentityBatches([r.identity for r in records], [r.camera for r in records], 3, 8, 3, seed)


def load(records, modalities=("visible", "infrared"), **settings) -> list[tuple[tuple[Tensor, Tensor], ...]]:
    model = dataclasses.replace(PRESETS["demo"].model, image_height=SIZE[0], image_width=SIZE[1])
    config = dataclasses.replace(PRESETS["demo"], model=model, crop_padding=PADDING, **{"workers": 0, **settings})
    sources = {m: Source(records, batches_of(records, n), 7 + n) for n, m in enumerate(modalities)}
    return list(TrainingBatches(sources, config, torch.device("cpu")))


CHAINS = {
    "visible": [VisibleTransform(*SIZE, exchange, PADDING) for exchange in (False, True)],
    "infrared": [InfraredTransform(*SIZE, PADDING)],
}


def test_batches_are_those_of_the_described_chain_to_the_last_bit(records) -> None:
    plain = [training_loader(records, CHAINS[m], batches_of(records, n), 0, 7 + n) for n, m in enumerate(CHAINS)]
    whole = load(records)
    assert len(whole) == 3 and batches_of(records, 0).batch_size > PIECE
    for step, expected in zip(whole, zip(*plain, strict=True), strict=True):
        for (images, rows), (other, same_rows) in zip(step, expected, strict=True):
            assert torch.equal(rows, same_rows) and images.dtype == other.dtype and torch.equal(images, other)


def test_what_reading_processes_need_is_compiled_before_they_start() -> None:
    guards = jitter_module._as_pillow_does, lines_module._as_pillow_does
    for guard in guards:
        guard.cache_clear()
    ViewOfBytes(*SIZE, PADDING, "visible", 0)
    assert [guard.cache_info().currsize for guard in guards] == [1, 1]


def test_without_padding_nothing_is_drawn_for_the_crop(records) -> None:
    chain = [VisibleTransform(*SIZE, exchange, 0) for exchange in (False, True)]
    expected = [images for images, _ in training_loader(records, chain, batches_of(records, 0), 0, 7)]
    model = dataclasses.replace(PRESETS["demo"].model, image_height=SIZE[0], image_width=SIZE[1])
    config = dataclasses.replace(PRESETS["demo"], model=model, crop_padding=0, workers=0)
    found = TrainingBatches({"visible": Source(records, batches_of(records, 0), 7)}, config, torch.device("cpu"))
    assert all(torch.equal(images, other) for ((images, _),), other in zip(found, expected, strict=True))


def test_a_modality_is_the_same_alone_and_in_a_pool(records) -> None:
    alone, both = load(records, ["visible"]), load(records, workers=2)
    for (visible,), (other, _) in zip(alone, both, strict=True):
        assert torch.equal(visible[0], other[0]) and torch.equal(visible[1], other[1])


def test_one_pool_of_bytes_in_small_pieces(records, monkeypatch) -> None:
    """What travels between processes: bytes of at most PIECE images; and the processes are those of one pool."""
    seen = []
    joined = StepLoader._joined
    monkeypatch.setattr(StepLoader, "_joined", lambda self, views: seen.append(views) or joined(self, views))
    load(records)
    for views in seen:
        for pixels, plan in views:
            assert pixels.dtype == torch.uint8 and len(pixels) == len(plan) <= PIECE and plan[0].nbytes == 56
    monkeypatch.undo()
    config = dataclasses.replace(PRESETS["sysu"], workers=8)
    height, width = config.image_size
    in_flight = 2 * config.workers * PIECE * 2 * height * width * 3      # two views; each process has two pieces ahead
    assert in_flight < 0.5 * 2**30
    loader = StepLoader([Stream(records, CHAINS["infrared"], batches_of(records, n), 7) for n in (0, 1)], 2)
    pools: list[int] = []
    kind = loading._Loader
    monkeypatch.setattr(loading, "_Loader", lambda *a, **k: pools.append(k["num_workers"]) or kind(*a, **k))
    assert len(list(loader)) == 3 and len(pools) == 1


def test_a_file_that_breaks_in_an_epoch_is_named(records) -> None:
    for record in records:
        Path(record.path).write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(Exception, match="cannot be read as an image"):
            load(records, workers=workers)
    with pytest.raises(Exception, match="no such image"):
        open_image(records[0].path + ".jpg")


def test_streams_of_different_lengths_are_refused(records) -> None:
    short = PseudoIdentityBatches([r.identity for r in records], [r.camera for r in records], 3, 8, 2, 0)
    with pytest.raises(ValueError, match="streams of 3 and 2 batches"):
        StepLoader([Stream(records, CHAINS["infrared"], b, 7) for b in (batches_of(records, 0), short)], 0)
