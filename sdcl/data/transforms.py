"""What chains from image files to the network's tensors are made of: resizing, normalisation, random erasing, channel
exchange.

Every random draw comes from PyTorch's default CPU generator, so that seeding it fixes a view.
"""

import math

import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ERASED = (0.4914, 0.4822, 0.4465)  # put into the *normalised* image, as the published runs do (method page, 9.5)
RED, GREEN, BLUE, GREYED = range(4)  # what a channel can be taken from
GREY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue, applied to the normalised image

# Method page, 9.5: training is bilinear, clustering bicubic, test Lanczos.
INTERPOLATIONS = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}


class RandomErasing:
    """Overwrite a random rectangle with constants, with probability 1/2 (method page, section 2).

    Its share of the area is uniform in 0.02–0.4, its height:width uniform (not log-uniform) in 0.3–1/0.3; both are
    drawn again, up to 100 times, until the rectangle is lower and narrower than the image.
    Takes and returns a float tensor [3, H, W]; the argument is not changed.
    """

    probability = 0.5
    area_range = (0.02, 0.4)
    aspect_range = (0.3, 1 / 0.3)
    tries = 100
    colour = ERASED

    def __call__(self, image: Tensor) -> Tensor:
        top, left, h, w = self.draw(*image.shape[1:])
        if h:
            image = image.clone()
            image[:, top : top + h, left : left + w] = image.new_tensor(self.colour)[:, None, None]
        return image

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the rectangle in an image of this size; all 0: nothing is erased."""
        if _uniform(0, 1) >= self.probability:
            return 0, 0, 0, 0
        for _ in range(self.tries):
            area = _uniform(*self.area_range) * height * width
            aspect = _uniform(*self.aspect_range)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                return _below(height - h + 1), _below(width - w + 1), h, w
        return 0, 0, 0, 0


def exchange_visible(image: Tensor) -> Tensor:
    """Copy one channel, chosen uniformly, over all three: [3, H, W] -> [3, H, W]."""
    return take_channels(image, draw_visible_exchange())


def exchange_infrared(image: Tensor) -> Tensor:
    """Each channel copied over all three with probability 1/4; else, half the time unchanged, half the time grey."""
    return take_channels(image, draw_infrared_exchange())


def draw_visible_exchange() -> tuple[int, int, int]:
    """What goes into the three channels: one of them, chosen uniformly."""
    return (_below(3),) * 3


def draw_infrared_exchange() -> tuple[int, int, int]:
    """Red, green or blue in all three with probability 1/4 each; else each in its own place or grey in all, by half."""
    choice = _below(4)
    if choice < 3:
        return (choice,) * 3
    return (RED, GREEN, BLUE) if _uniform(0, 1) < 0.5 else (GREYED,) * 3


def take_channels(image: Tensor, sources: tuple[int, int, int]) -> Tensor:
    """An image [3, H, W] with its channels taken from RED, GREEN, BLUE or GREYED, as the draws above give them."""
    if sources == (RED, GREEN, BLUE):
        return image
    if sources[0] == GREYED:
        return (image.new_tensor(GREY)[:, None, None] * image).sum(0, keepdim=True).repeat(3, 1, 1)
    return image[sources[0]].expand(3, -1, -1).clone()


def resize(height: int, width: int, interpolation: str) -> transforms.Resize:
    """PIL -> PIL of that size. interpolation: a name in `INTERPOLATIONS`; raises ValueError for another."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, not {interpolation!r}")
    return transforms.Resize((height, width), INTERPOLATIONS[interpolation])


def evaluation_transform(height: int, width: int, interpolation: str) -> transforms.Compose:
    """PIL RGB -> float32 [3, height, width], normalised, without randomness.

    interpolation: "bicubic" for clustering, "lanczos" for the test. Raises ValueError for a name that is unknown.
    """
    return transforms.Compose(
        [resize(height, width, interpolation), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )


def normalize_bytes(images: Tensor) -> Tensor:
    """uint8 [b, H, W, 3] -> float [b, 3, H, W], normalised: equal to `evaluation_transform` after its resize, to the
    last bit, on any device."""
    x = images.permute(0, 3, 1, 2).to(torch.get_default_dtype(), memory_format=torch.contiguous_format)
    # Divisors are tensors: by a plain number a GPU would multiply with its inverse, which rounds differently.
    return x.div_(x.new_full((), 255)).sub_(channels(MEAN, x)).div_(channels(STD, x))


def channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
    """[3, 1, 1] constants, one for each channel; filled in where they are, since a copy would wait for the device."""
    return torch.stack([like.new_full((1, 1), value) for value in values])


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _below(n: int) -> int:
    """A uniform integer in 0 … n−1."""
    return int(torch.randint(n, ()).item())
