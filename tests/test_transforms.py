"""Training views and plain chains: shapes, the rules of erasing and channel exchange, and their statistics."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdcl.data.transforms import (
    ERASED,
    GREY,
    MEAN,
    STD,
    RandomErasing,
    evaluation_transform,
    exchange_infrared,
    exchange_visible,
)
from sdcl.training.views import InfraredTransform, VisibleTransform

DRAWS = 4000


def picture(height: int = 64, width: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def close_to(share: float, expected: float) -> bool:
    """Within five standard deviations of DRAWS draws."""
    return abs(share - expected) < 5 * (expected * (1 - expected) / DRAWS) ** 0.5


@pytest.mark.parametrize("transform", [VisibleTransform(48, 24, False), VisibleTransform(48, 24, True),
                                       InfraredTransform(48, 24)])
def test_a_view_has_the_size_asked_for_and_follows_the_seed(transform) -> None:
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(transform(picture()))
    assert views[0].shape == (3, 48, 24) and views[0].dtype == torch.float32 and views[0].is_contiguous()
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


def test_the_chain_is_the_documented_one() -> None:
    names = [type(step).__name__ for step in VisibleTransform(288, 144, False).steps.transforms]
    assert names == ["ColorJitter", "Resize", "Pad", "RandomCrop", "RandomHorizontalFlip", "ToTensor", "Normalize",
                     "RandomErasing"]
    jitter = VisibleTransform(288, 144, False).steps.transforms[0]
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.5, 1.5) and jitter.hue == (-0.5, 0.5)


def test_crop_shifts_by_up_to_ten_and_pads_black_and_flips_half() -> None:
    """One white column, seen through pad and crop: its place tells the shift and the flip."""
    array = np.full((40, 41, 3), 128, dtype=np.uint8)
    array[:, 12] = 255  # flipped: column 28
    chain = VisibleTransform(40, 41, False).steps.transforms
    image = Image.fromarray(array)
    lowest = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    shifts, flips, black = [], 0, 0
    torch.manual_seed(0)
    for _ in range(DRAWS // 4):
        view = image
        for step in chain[2:7]:
            view = step(view)
        place = int(view[0].amax(0).argmax())
        flips += place > 20
        shifts.append(place - 12 if place <= 22 else place - 28)
        black += torch.allclose(view.amin((1, 2)), lowest)
    assert black > 0.98 * len(shifts)  # one shift of 441 shows no padding
    assert 0.4 < flips / len(shifts) < 0.6
    assert min(shifts) >= -10 and max(shifts) <= 10 and len(set(shifts)) >= 20


@pytest.mark.slow
def test_erasing_statistics() -> None:
    """Share of erased images, constants, the shape's limits and its uniform laws on an image where all shapes fit."""
    torch.manual_seed(0)
    erase, side = RandomErasing(), 160
    image, areas, aspects, tops = torch.full((3, side, side), 7.0), [], [], []
    for _ in range(DRAWS):
        view = erase(image)
        if view is image:
            continue
        gone = view[0] != 7.0
        rows, columns = gone.any(1), gone.any(0)
        h, w = int(rows.sum()), int(columns.sum())
        assert int(gone.sum()) == h * w and h < side and w < side  # one rectangle, lower and narrower than the image
        for channel, value in zip(view, ERASED, strict=True):
            assert (channel[gone] == value).all() and (channel[~gone] == 7.0).all()
        areas.append(h * w / side**2)
        aspects.append(h / w)
        tops.append(int(rows.int().argmax()) / (side - h))
    assert (image == 7.0).all()  # the argument is not changed
    assert close_to(len(areas) / DRAWS, 0.5)
    assert min(areas) > 0.018 and max(areas) < 0.405 and min(aspects) > 0.28 and max(aspects) < 3.5
    assert min(tops) < 0.01 and max(tops) > 0.99 and abs(np.mean(tops) - 0.5) < 0.03
    # Large rectangles of extreme shape do not fit and are drawn again; small ones all do: there the laws show.
    small = np.array(aspects)[np.array(areas) < 0.25]
    uniform_mean = (0.3 + 1 / 0.3) / 2  # 1.82; log-uniform would give 1.26
    assert abs(small.mean() - uniform_mean) < 5 * 0.876 / len(small) ** 0.5
    below = np.mean(np.array(areas) < 0.135)  # a third or a little more of uniform 0.02–0.4: 0.303 before refusals
    assert 0.26 < below < 0.36


def test_erasing_gives_up_where_nothing_fits() -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, 1, 1)
    assert all(torch.equal(RandomErasing()(image), image) for _ in range(20))


def kinds(exchange, image: Tensor) -> dict[str, float]:
    """Share of the draws that gave each of the possible results."""
    grey = sum(weight * channel for weight, channel in zip(GREY, image, strict=True)).expand(3, -1, -1)
    results = {"red": image[:1].expand(3, -1, -1), "green": image[1:2].expand(3, -1, -1),
               "blue": image[2:].expand(3, -1, -1), "same": image, "grey": grey}
    counts = dict.fromkeys(results, 0)
    for _ in range(DRAWS):
        view = exchange(image)
        matching = [name for name, result in results.items() if torch.allclose(view, result, atol=1e-6)]
        assert len(matching) == 1
        counts[matching[0]] += 1
    return {name: count / DRAWS for name, count in counts.items()}


@pytest.mark.slow
def test_channel_exchange_shares() -> None:
    torch.manual_seed(0)
    image = torch.randn(3, 5, 4)
    visible = kinds(exchange_visible, image)
    assert all(close_to(visible[name], 1 / 3) for name in ("red", "green", "blue"))
    assert visible["same"] == visible["grey"] == 0
    infrared = kinds(exchange_infrared, image)
    assert all(close_to(infrared[name], 1 / 4) for name in ("red", "green", "blue"))
    assert all(close_to(infrared[name], 1 / 8) for name in ("same", "grey"))


@pytest.mark.slow
def test_only_view_two_and_infrared_exchange() -> None:
    def equal_channels(transform) -> float:
        torch.manual_seed(0)
        views = [transform(picture(seed=n)) for n in range(400)]
        return np.mean([bool((view[0] == view[1]).all() and (view[1] == view[2]).all()) for view in views])

    assert equal_channels(VisibleTransform(24, 12, False)) == 0
    assert equal_channels(VisibleTransform(24, 12, True)) == 1
    assert abs(equal_channels(InfraredTransform(24, 12)) - 7 / 8) < 5 * (7 / 64 / 400) ** 0.5


@pytest.mark.parametrize(("name", "resample"), [("bicubic", Image.Resampling.BICUBIC),
                                                ("lanczos", Image.Resampling.LANCZOS)])
def test_evaluation_chain_is_pils_resize_and_normalisation(name: str, resample: Image.Resampling) -> None:
    image = picture(100, 60)
    expected = np.asarray(image.resize((24, 48), resample), dtype=np.float32) / 255
    expected = (expected - np.float32(MEAN)) / np.float32(STD)
    state = torch.get_rng_state()
    view = evaluation_transform(48, 24, name)(image)
    assert view.dtype == torch.float32 and torch.allclose(view, torch.from_numpy(expected).permute(2, 0, 1), atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_interpolation() -> None:
    with pytest.raises(ValueError, match="bicubic, lanczos"):
        evaluation_transform(48, 24, "nearest")
