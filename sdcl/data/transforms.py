"""From a PIL image to the tensor that the network sees: training views, and the plain chains of clustering and test.

Every random draw comes from PyTorch's default CPU generator, so that seeding it fixes a view.
"""

import math

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ERASED = (0.4914, 0.4822, 0.4465)  # put into the *normalised* image, as the published runs do (method page, 9.5)
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
        if _uniform(0, 1) >= self.probability:
            return image
        _, height, width = image.shape
        for _ in range(self.tries):
            area = _uniform(*self.area_range) * height * width
            aspect = _uniform(*self.aspect_range)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = _below(height - h + 1), _below(width - w + 1)
                image = image.clone()
                image[:, top : top + h, left : left + w] = image.new_tensor(self.colour)[:, None, None]
                return image
        return image


def exchange_visible(image: Tensor) -> Tensor:
    """Copy one channel, chosen uniformly, over all three: [3, H, W] -> [3, H, W]."""
    return _copy_channel(image, _below(3))


def exchange_infrared(image: Tensor) -> Tensor:
    """Each channel copied over all three with probability 1/4; else, half the time unchanged, half the time grey."""
    choice = _below(4)
    if choice < 3:
        return _copy_channel(image, choice)
    if _uniform(0, 1) < 0.5:
        return image
    return (image.new_tensor(GREY)[:, None, None] * image).sum(0, keepdim=True).repeat(3, 1, 1)


class _TrainingChain:
    """What all training views share: PIL RGB of any size -> float32 [3, height, width], normalised, randomly erased.

    padding: pixels of black around the resized image before the random crop; 10 at 288 x 144.
    """

    def __init__(self, height: int, width: int, padding: int = 10) -> None:
        self.steps = transforms.Compose(
            [
                transforms.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5),
                resize(height, width, "bilinear"),
                transforms.Pad(padding),  # black, before normalisation
                transforms.RandomCrop((height, width)),
                transforms.RandomHorizontalFlip(0.5),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                RandomErasing(),
            ]
        )


class VisibleTransform(_TrainingChain):
    """A training view of a visible image: PIL RGB -> float32 [3, height, width], normalised.

    exchange: False for view 1, True for view 2, which ends with a channel exchange. padding: see `_TrainingChain`.
    """

    def __init__(self, height: int, width: int, exchange: bool, padding: int = 10) -> None:
        super().__init__(height, width, padding)
        self.exchange = exchange

    def __call__(self, image: Image.Image) -> Tensor:
        view = self.steps(image)
        return exchange_visible(view) if self.exchange else view


class InfraredTransform(_TrainingChain):
    """A training view of an infrared image: PIL RGB -> float32 [3, height, width], normalised."""

    def __call__(self, image: Image.Image) -> Tensor:
        return exchange_infrared(self.steps(image))


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


def _copy_channel(image: Tensor, channel: int) -> Tensor:
    return image[channel].expand(3, -1, -1).clone()
