"""Training views of a whole batch at once, on the model's device (`--augment device`; method page, section 2).

The operations and distributions of `sdcl.data.transforms`, with draws of its own for every view of every image. Colour
jitter alone differs: it comes after the resize, and nothing is rounded to bytes between its operations. The draws come
from a generator on the device, so that nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.data.transforms import BLUE, ERASED, GREEN, GREY, GREYED, MEAN, RED, STD, RandomErasing, channels

__all__ = [
    "DeviceAugmentation",
    "Draws",
    "augment",
    "erase",
    "exchange",
    "exchange_infrared",
    "exchange_visible",
    "unchanged",
]

JITTER = 0.5
"""Largest change of brightness, contrast and saturation as a share, and of hue as a share of the circle."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

Exchange = Callable[[int, torch.Generator], Tensor]
"""Number of images, generator -> int64 [n, 3]: what goes into each image's channels, RED, GREEN, BLUE or GREYED."""


class Draws(NamedTuple):
    """Everything random in the views of n images."""

    factors: Tensor
    """[n, 4] of brightness, contrast, saturation (0.5 to 1.5) and hue (-0.5 to 0.5 turns)."""
    order: Tensor
    """int64 [n, 4]: the four operations of each image's jitter, BRIGHTNESS to HUE, in their order."""
    shift: Tensor
    """int64 [n, 2]: the crop's first row and column in the padded image."""
    flip: Tensor
    """bool [n]."""
    rectangle: Tensor
    """[n, 4] top, left, height and width of what is erased; 0 high and wide where nothing is."""
    sources: Tensor
    """int64 [n, 3] of the channels, see `Exchange`."""


class DeviceAugmentation:
    """Training views of one batch after the other, made on the device out of resized images.

    Every process draws for the whole batch and uses its part of the draws, so that the images depend on the seed and
    the kind of device, but not on the number of processes.

    Args:
        exchanges: of the V views, how each ends.
        padding: pixels of black around the image before the random crop.
        seed: a non-negative number, new for each epoch.
        part: (p, P), of the loader.
    """

    def __init__(
        self,
        exchanges: Sequence[Exchange],
        padding: int,
        seed: int,
        device: torch.device,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.exchanges, self.padding, self.part = exchanges, padding, part
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """This process's part of a batch, uint8 [V·b/P, H, W, 3] on the device, to float [V·b/P, 3, H, W]."""
        number, parts = self.part
        share, (height, width) = len(images), images.shape[1:3]
        draws = draw(share * parts, height, width, self.padding, self.exchanges, self.generator)
        own = Draws(*(x[number * share : (number + 1) * share] for x in draws))
        return augment(images, own, self.padding)


def draw(
    n: int, height: int, width: int, padding: int, exchanges: Sequence[Exchange], generator: torch.Generator
) -> Draws:
    """Draws for n views: view 1 of all images, then view 2 of all, one for each of `exchanges`."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator, device=generator.device, dtype=torch.float64)

    spread = 2 * JITTER * uniform(4) - JITTER
    factors = torch.cat([1 + spread[:, :HUE], spread[:, HUE:]], 1).to(torch.get_default_dtype())
    order = uniform(4).argsort(1)
    shift = (uniform(2) * (2 * padding + 1)).long()
    flip = uniform() < 0.5
    erased = uniform() < RandomErasing.probability
    rectangle = erasing_rectangles(uniform(RandomErasing.tries, 2), uniform(2), height, width) * erased[:, None]
    sources = torch.cat([exchange(n // len(exchanges), generator) for exchange in exchanges])
    return Draws(factors, order, shift, flip, rectangle, sources)


def augment(images: Tensor, draws: Draws, padding: int) -> Tensor:
    """uint8 [n, H, W, 3] -> normalised views, float [n, 3, H, W]."""
    x = images.permute(0, 3, 1, 2).to(torch.get_default_dtype(), memory_format=torch.contiguous_format) / 255
    x = jitter(x, draws.factors, draws.order)
    x = crop_and_flip(x, draws.shift, draws.flip, padding)
    x = (x - channels(MEAN, x)) / channels(STD, x)
    x = erase(x, draws.rectangle)
    return exchange(x, draws.sources)


def jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of images [n, 3, H, W] in 0–1, each in its own order.

    The three blends of an image fall into three places before the turn of hue, which is the costly one, and three
    after it; a place that an image does not need has the factor 1, which changes no bit.
    """
    factor, hue_at = factors.gather(1, order), (order == HUE).int().argmax(1)
    for place in (0, 1, 2):
        x = _blend(x, order[:, place], torch.where(place < hue_at, factor[:, place], 1))
    x = _turn_hue(x, factors[:, HUE])
    for place in (1, 2, 3):
        x = _blend(x, order[:, place], torch.where(place > hue_at, factor[:, place], 1))
    return x


def _blend(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Brightness blends an image with black, contrast with its mean grey, saturation with its grey image."""
    operation, factor, grey = _each(operation), _each(factor), _grey(x)
    other = torch.where(operation == CONTRAST, grey.mean((1, 2, 3), keepdim=True), grey) * (operation != BRIGHTNESS)
    return torch.lerp(other, x, factor).clamp_(0, 1)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """The images with their hue (of HSV) turned; saturation and value stay."""
    red, green, blue = x.split(1, 1)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    divisor = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, sixths) + 6 * _each(turns)
    # A channel holds the value within one sixth of its own place on the circle, and lacks all chroma beyond two.
    away = sixths - (2 * torch.arange(3, device=x.device)).view(1, 3, 1, 1)
    away = (away - 6 * (away / 6).round_()).abs_()
    return value - chroma * (away - 1).clamp_(0, 1)


def crop_and_flip(x: Tensor, shift: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Images [n, 3, H, W] with black around them, cut to their size from `shift` on, some of them mirrored."""
    n, _, height, width = x.shape
    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    rows = shift[:, :1] + rows
    columns = shift[:, 1:] + torch.where(flip[:, None], width - 1 - columns, columns)
    image, channel = torch.arange(n, device=x.device), torch.arange(3, device=x.device)
    padded = F.pad(x, [padding] * 4)
    return padded[_each(image), channel[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def erasing_rectangles(candidates: Tensor, place: Tensor, height: int, width: int) -> Tensor:
    """[n, 4] top, left, height and width: of each image's candidates the first that is lower and narrower than it.

    Args:
        candidates: [n, tries, 2] uniform in 0–1, for share of the area and height:width (`RandomErasing`).
        place: [n, 2] uniform in 0–1, for top and left.
    """
    area, aspect = (
        low + (high - low) * candidates[..., i]
        for i, (low, high) in enumerate((RandomErasing.area_range, RandomErasing.aspect_range))
    )
    area = area * height * width
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 2).round()
    fits = (sides[..., 0] < height) & (sides[..., 1] < width)
    first = fits.int().argmax(1)[:, None, None].expand(-1, 1, 2)
    sides = sides.gather(1, first)[:, 0] * fits.any(1, keepdim=True)
    free = torch.stack([height - sides[:, 0], width - sides[:, 1]], 1)
    return torch.cat([(place * (free + 1)).floor(), sides], 1)


def erase(x: Tensor, rectangle: Tensor) -> Tensor:
    """Normalised images [n, 3, H, W] with a rectangle of each overwritten by constants."""
    top, left, high, wide = (_each(edge) for edge in rectangle.unbind(1))
    row = torch.arange(x.shape[2], device=x.device)[:, None]
    column = torch.arange(x.shape[3], device=x.device)
    gone = (row >= top) & (row < top + high) & (column >= left) & (column < left + wide)
    return torch.where(gone, channels(ERASED, x), x)


def exchange(x: Tensor, sources: Tensor) -> Tensor:
    """Images [n, 3, H, W] with their channels taken from red, green, blue or grey."""
    available = torch.cat([x, _grey(x)], 1)
    return available[torch.arange(len(x), device=x.device)[:, None], sources]


def unchanged(n: int, generator: torch.Generator) -> Tensor:
    """How view 1 of visible images ends."""
    return torch.arange(3, device=generator.device).expand(n, 3)


def exchange_visible(n: int, generator: torch.Generator) -> Tensor:
    """How view 2 of visible images ends: one channel copied over all."""
    return torch.randint(3, (n, 1), generator=generator, device=generator.device).expand(n, 3)


def exchange_infrared(n: int, generator: torch.Generator) -> Tensor:
    """How infrared images end: each channel copied over all with probability 1/4; else unchanged or grey, by half."""
    eighths = torch.randint(8, (n, 1), generator=generator, device=generator.device)
    return torch.where(eighths < 6, eighths // 2, torch.where(eighths < 7, unchanged(n, generator), GREYED))


def _grey(x: Tensor) -> Tensor:
    """[n, 3, H, W] -> [n, 1, H, W]."""
    red, green, blue = x.split(1, 1)
    return GREY[RED] * red + GREY[GREEN] * green + GREY[BLUE] * blue


def _each(values: Tensor) -> Tensor:
    """[n] -> [n, 1, 1, 1], one for each image."""
    return values.view(-1, 1, 1, 1)
