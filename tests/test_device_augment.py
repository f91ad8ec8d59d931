"""Augmentation of whole batches: each operation against torchvision's or the chain's, the draws against their laws."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchvision.transforms import functional as tv

from sdcl.config import PRESETS
from sdcl.data import transforms
from sdcl.data.augment import device as on_device
from sdcl.data.augment.device import CONTRAST, GREYED, HUE, Draws, draw
from sdcl.data.images import open_image
from sdcl.data.records import ImageRecord
from sdcl.data.sampler import PseudoIdentityBatches
from sdcl.training.views import ON_DEVICE, InfraredTransform, Source, TrainingBatches, VisibleTransform

SIZE, PADDING, DRAWS = (24, 12), 3, 4000
VISIBLE, INFRARED = ON_DEVICE["visible"], ON_DEVICE["infrared"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(n: int = DRAWS, exchanges=INFRARED, seed: int = 0, size=SIZE, padding: int = PADDING) -> Draws:
    return draw(n, *size, padding, exchanges, generator(seed))


def colours(n: int, size=SIZE, seed: int = 0) -> Tensor:
    """uint8 [n, H, W, 3]: smooth colours of many hues, and greys, black and white, where hue is a special case."""
    noise = F.interpolate(torch.rand(n, 3, 4, 3, generator=generator(seed)), size, mode="bilinear")
    images = (noise * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    images[:, 0, :4] = torch.tensor([[0] * 3, [255] * 3, [77] * 3, [255, 255, 0]], dtype=torch.uint8)
    return images


def share_close(share: float, expected: float, n: int = DRAWS) -> bool:
    """Within five standard deviations."""
    return abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


def is_uniform(values: Tensor, low: float, high: float, bins: int = 20) -> bool:
    counts = torch.histc(values.float(), bins, low, high)
    return bool(counts.sum() == values.numel()) and all(
        share_close(float(c) / values.numel(), 1 / bins, values.numel()) for c in counts
    )


ADJUST = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]


@pytest.mark.parametrize("operation", range(4))
def test_each_operation_of_the_jitter_is_torchvisions(operation: int) -> None:
    """One operation at a time, at every place of the order, the others without effect."""
    images = colours(24).permute(0, 3, 1, 2) / 255
    low, high = (-0.5, 0.5) if operation == HUE else (0.5, 1.5)
    wanted = torch.linspace(low, high, 24)
    factors = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(24, 1)
    factors[:, operation] = wanted
    order = torch.tensor(list(itertools.permutations(range(4))))
    got = on_device.jitter(images, factors, order)
    for x, y, factor in zip(images, got, wanted.tolist(), strict=True):
        torch.testing.assert_close(y, ADJUST[operation](x, factor), rtol=0, atol=2e-6)
    assert float((got - images).abs().max()) > 0.1


def test_a_factor_of_one_and_no_turn_leave_an_image_as_it_is() -> None:
    images = colours(24).permute(0, 3, 1, 2) / 255
    order = torch.tensor(list(itertools.permutations(range(4))))
    same = on_device.jitter(images, torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(24, 1), order)
    torch.testing.assert_close(same, images, rtol=0, atol=1e-6)


def test_every_order_of_the_jitter_is_torchvisions_one_after_another() -> None:
    images = colours(24).permute(0, 3, 1, 2) / 255
    factors, order = drawn(24).factors, torch.tensor(list(itertools.permutations(range(4))))
    got = on_device.jitter(images, factors, order)
    for x, y, factor, operations in zip(images, got, factors.tolist(), order.tolist(), strict=True):
        for operation in operations:
            x = ADJUST[operation](x, factor[operation])
        torch.testing.assert_close(y, x, rtol=0, atol=1e-5)


def by_the_chains_own_steps(pixels: Tensor, draws: Draws, row: int, padding: int) -> Tensor:
    """The view of one image, step by step as `sdcl.data.transforms` takes them, with the given draws."""
    x = pixels.permute(2, 0, 1) / 255
    for operation in draws.order[row].tolist():
        x = ADJUST[operation](x, float(draws.factors[row, operation]))
    x = tv.crop(tv.pad(x, [padding]), *draws.shift[row].tolist(), *x.shape[1:])
    x = tv.hflip(x) if draws.flip[row] else x
    x = tv.normalize(x, transforms.MEAN, transforms.STD)
    top, left, high, wide = map(int, draws.rectangle[row])
    x[:, top : top + high, left : left + wide] = torch.tensor(transforms.ERASED)[:, None, None]
    grey = (x * torch.tensor(transforms.GREY)[:, None, None]).sum(0)
    return torch.stack([grey if c == GREYED else x[c] for c in draws.sources[row].tolist()])


@pytest.mark.parametrize("exchanges", [VISIBLE, INFRARED])
def test_views_are_those_of_the_chains_steps_with_the_same_draws(exchanges) -> None:
    images, draws = colours(60), drawn(60, exchanges)
    views = on_device.augment(images, draws, PADDING)
    assert views.shape == (60, 3, *SIZE) and views.dtype == torch.float32 and views.is_contiguous()
    for row, view in enumerate(views):
        expected = by_the_chains_own_steps(images[row], draws, row, PADDING)
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-4)


def test_without_padding_nothing_is_shifted() -> None:
    assert not drawn(100, padding=0).shift.any()
    images = colours(4).permute(0, 3, 1, 2).float()
    flip = torch.tensor([True, False, True, False])
    moved = on_device.crop_and_flip(images, torch.zeros(4, 2, dtype=torch.long), flip, 0)
    assert torch.equal(moved[0], images[0].flip(2)) and torch.equal(moved[1], images[1])


def test_jitter_draws_follow_torchvisions_laws() -> None:
    draws = drawn(24 * 500)
    for operation in range(3):
        assert is_uniform(draws.factors[:, operation], 0.5, 1.5)
    assert is_uniform(draws.factors[:, HUE], -0.5, 0.5)
    assert draws.factors.T.corrcoef().triu(1).abs().max() < 5 / len(draws.order) ** 0.5  # of their own each
    orders, counts = draws.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and all(share_close(c / 12000, 1 / 24, 12000) for c in counts.tolist())
    assert (draws.order.sort(1).values == torch.arange(4)).all()
    chain = VisibleTransform(*SIZE, False).steps.transforms[0]
    assert chain.brightness == chain.contrast == chain.saturation == (0.5, 1.5) and chain.hue == (-0.5, 0.5)


def test_crop_and_flip_draws() -> None:
    draws = drawn()
    for axis in range(2):
        values, counts = draws.shift[:, axis].unique(return_counts=True)
        assert values.tolist() == list(range(2 * PADDING + 1))
        assert all(share_close(c / DRAWS, 1 / len(values)) for c in counts.tolist())
    assert share_close(float(draws.flip.double().mean()), 0.5)


def rectangle_by_loop(candidates, place, height: int, width: int) -> list[int]:
    """The rule as `RandomErasing` states it."""
    for first, second in candidates.tolist():
        area = (0.02 + (0.4 - 0.02) * first) * height * width
        aspect = 0.3 + (1 / 0.3 - 0.3) * second
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return [math.floor(place[0] * (height - h + 1)), math.floor(place[1] * (width - w + 1)), h, w]
    return [0, 0, 0, 0]


@pytest.mark.parametrize("size", [(288, 144), (24, 12), (20, 60), (3, 2), (2, 2), (1, 1)])
def test_rectangles_are_the_first_candidates_that_fit(size) -> None:
    uniform = torch.rand(500, 4, 2, generator=generator(), dtype=torch.float64)  # of four tries, none may fit
    place = torch.rand(500, 2, generator=generator(1), dtype=torch.float64)
    place[0] = 1 - 2**-53
    got = on_device.erasing_rectangles(uniform, place, *size)
    expected = torch.tensor([rectangle_by_loop(u, p.tolist(), *size) for u, p in zip(uniform, place, strict=True)])
    assert torch.equal(got[:, 2:], expected[:, 2:].double())
    erased = (expected[:, 2:] > 0).all(1)
    assert torch.equal(got[erased], expected[erased].double())
    again = sum(rectangle_by_loop(u[:1], p.tolist(), *size)[2] == 0 for u, p in zip(uniform, place, strict=True))
    assert again > 0  # some were drawn again


def test_rectangles_are_distributed_as_the_chains(size=(48, 24)) -> None:
    rectangle = drawn(size=size).rectangle
    erased = rectangle[rectangle[:, 2] > 0]
    chain, theirs = transforms.RandomErasing(), []
    torch.manual_seed(0)
    image = torch.full((3, *size), 9.0)
    for _ in range(DRAWS):
        view = chain(image)
        if view is not image:
            rows, columns = (view[0] != 9.0).any(1).nonzero(), (view[0] != 9.0).any(0).nonzero()
            theirs.append([rows[0], columns[0], len(rows), len(columns)])
    assert share_close(len(erased) / DRAWS, 0.5) and share_close(len(theirs) / DRAWS, 0.5)
    for mine, other in zip(erased.T.double(), torch.tensor(theirs, dtype=torch.float64).T, strict=True):
        assert same_law(mine, other)


def same_law(a: Tensor, b: Tensor) -> bool:
    """Kolmogorov and Smirnov's two-sample test at one in a million."""
    a, b = a.flatten().sort().values, b.flatten().sort().values
    points = torch.cat([a, b])
    below = [torch.searchsorted(x, points, right=True) / len(x) for x in (a, b)]
    return float((below[0] - below[1]).abs().max()) < (-math.log(5e-7) / 2 * (1 / len(a) + 1 / len(b))) ** 0.5


def test_channel_exchange_draws() -> None:
    channels = drawn(2 * DRAWS, VISIBLE).sources
    assert (channels[:DRAWS] == torch.arange(3)).all()  # view 1
    shares = {tuple(c): n / DRAWS for c, n in zip(*(x.tolist() for x in channels[DRAWS:].unique(
        dim=0, return_counts=True)), strict=True)}  # fmt: skip
    assert shares.keys() == {(c, c, c) for c in range(3)} and all(share_close(s, 1 / 3) for s in shares.values())
    found, counts = drawn(DRAWS, INFRARED).sources.unique(dim=0, return_counts=True)
    shares = {tuple(c): n / DRAWS for c, n in zip(found.tolist(), counts.tolist(), strict=True)}
    expected = {(c, c, c): 1 / 4 for c in range(3)} | {(0, 1, 2): 1 / 8, (GREYED,) * 3: 1 / 8}
    assert shares.keys() == expected.keys() and all(share_close(shares[c], p) for c, p in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("chain, exchanges", [
    (VisibleTransform(*SIZE, False, PADDING), [on_device.unchanged]),
    (VisibleTransform(*SIZE, True, PADDING), [on_device.exchange_visible]),
    (InfraredTransform(*SIZE, PADDING), INFRARED),
])  # fmt: skip
def test_views_are_distributed_as_the_chains(chain, exchanges) -> None:
    """Many views of one picture that needs no resize: means, variances and laws of its pixels and channel means.

    Rounding to bytes between the jitter's operations is all that differs then, and moves a value by at most 0.03.
    """
    n = 2000
    pixels = colours(1, seed=4)[0]
    picture = Image.fromarray(pixels.numpy())
    torch.manual_seed(1)
    theirs = torch.stack([chain(picture) for _ in range(n)])
    mine = on_device.augment(pixels.expand(n, -1, -1, -1), drawn(n, exchanges, seed=3), PADDING)
    difference = (mine.mean(0) - theirs.mean(0)) / ((mine.var(0) + theirs.var(0)) / n).sqrt()
    assert difference.abs().max() < 6 and difference.std() < 1.6  # pixels go together: no closer bound holds
    for a, b in ((mine.mean((2, 3)), theirs.mean((2, 3))), (mine[:, :, 9, 5], theirs[:, :, 9, 5])):
        for channel in range(3):
            rounded = [(x[:, channel] / 0.1).round() for x in (a, b)]
            assert same_law(*rounded)
    assert mine.std(0).mean() == pytest.approx(float(theirs.std(0).mean()), rel=0.03)


def test_every_image_has_draws_of_its_own() -> None:
    same = colours(1).expand(64, -1, -1, -1)
    views = on_device.augment(same, drawn(64, VISIBLE), PADDING)
    assert len(views.flatten(1).unique(dim=0)) == 64


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever asks for one, or for a shape that depends on one, fails."""
    with FakeTensorMode():
        images = torch.zeros(8, *SIZE, 3, dtype=torch.uint8)
        draws = draw(8, *SIZE, PADDING, VISIBLE, torch.Generator())
        views = on_device.augment(images, draws, PADDING)
        assert views.shape == (8, 3, *SIZE)
        with pytest.raises(DataDependentOutputException):
            bool(views.sum() > 0)


@pytest.fixture
def records(tmp_path) -> list[ImageRecord]:
    """24 images of 6 identities and 2 cameras, of another size than the network's."""
    made = []
    for n, pixels in enumerate(colours(24, (30, 14), seed=9)):
        path = str(tmp_path / f"{n:02d}.png")
        Image.fromarray(pixels.numpy()).save(path)
        made.append(ImageRecord(path, n // 4, n % 2))
    return made


def load(records, modality="visible", seed=5, device="cpu", **settings) -> list[tuple[Tensor, Tensor]]:
    model = dataclasses.replace(PRESETS["demo"].model, image_height=32, image_width=16)
    config = dataclasses.replace(PRESETS["demo"], model=model, **{"augment": "device", **settings})
    batches = PseudoIdentityBatches([r.identity for r in records], [r.camera for r in records], 2, 4, 3, 0)
    loader = TrainingBatches({modality: Source(records, batches, seed)}, config, torch.device(device))
    return [batch for (batch,) in loader]


def equal(a, b) -> bool:
    pairs = [pair for batches in zip(a, b, strict=True) for pair in zip(*batches, strict=True)]
    return all(torch.equal(x, y) for x, y in pairs)


def test_batches_are_those_of_the_workers_but_for_the_draws(records) -> None:
    for modality in ("visible", "infrared"):
        mine, theirs = load(records, modality), load(records, modality, augment="workers")
        for (images, rows), (other, same_rows) in zip(mine, theirs, strict=True):
            assert images.shape == other.shape and images.dtype == other.dtype and torch.equal(rows, same_rows)
    for images, _ in load(records):
        exchanged = (images[:, 0] == images[:, 1]).flatten(1).all(1)
        assert exchanged.tolist() == [False] * 8 + [True] * 8


def test_what_is_augmented_is_the_bilinear_image(records, monkeypatch) -> None:
    monkeypatch.setattr(on_device, "augment", lambda images, draws, padding: images)
    for images, rows in load(records):
        for image, row in zip(images, rows.tolist(), strict=True):
            expected = open_image(records[row].path).resize((16, 32), Image.Resampling.BILINEAR)
            assert np.array_equal(image, expected)


def test_views_depend_on_the_seed_alone(records, tmp_path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    views = load(records, workers=0)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left as it was
    torch.manual_seed(2)
    assert equal(views, load(records, workers=2))
    assert equal(views, load(records, image_cache=tmp_path / "cache"))
    assert not equal(views, load(records, seed=6))
    first = views[0][0]
    assert not torch.equal(first[:8, 0], views[1][0][:8, 0])  # batches draw anew


def test_iterating_again_gives_the_same(records) -> None:
    batches = PseudoIdentityBatches([r.identity for r in records], [r.camera for r in records], 2, 4, 3, 0)
    config = dataclasses.replace(PRESETS["demo"], augment="device", workers=0)
    views = TrainingBatches({"infrared": Source(records, batches, 5)}, config, torch.device("cpu"))
    assert equal([x for (x,) in views], [x for (x,) in views]) and len(views) == 3


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("modality", ["visible", "infrared"])
def test_parts_of_processes_make_up_the_whole(records, modality, processes, monkeypatch) -> None:
    whole, parts = load(records, modality), []
    monkeypatch.setattr("sdcl.distributed.world", lambda: processes)
    for process in range(processes):
        monkeypatch.setattr("sdcl.distributed.rank", lambda process=process: process)
        parts.append(load(records, modality))
    for step, (images, rows) in enumerate(whole):
        assert all(torch.equal(part[step][1], rows) for part in parts)
        # sums over an image of another batch size may round differently
        torch.testing.assert_close(torch.cat([part[step][0] for part in parts]), images, rtol=0, atol=1e-5)


def test_contrast_meets_what_came_before_it() -> None:
    """The mean grey that contrast blends with is that of the image as brightness left it, not of the original."""
    images = colours(2).permute(0, 3, 1, 2) / 255
    factors = torch.tensor([[0.5, 0.5, 1.0, 0.0]]).repeat(2, 1)
    order = torch.tensor([[0, CONTRAST, 2, 3], [CONTRAST, 0, 2, 3]])
    darker, first = on_device.jitter(images[:1].repeat(2, 1, 1, 1), factors, order)
    torch.testing.assert_close(darker, first, rtol=0, atol=1e-6)  # below white the two commute
    brighter = torch.tensor([[1.5, 0.5, 1.0, 0.0]]).repeat(2, 1)
    one, two = on_device.jitter(images[:1].repeat(2, 1, 1, 1), brighter, order)
    assert float((one - two).abs().max()) > 0.05  # at white they do not
