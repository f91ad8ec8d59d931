"""From a resized image to what PIC's network sees in training (docs/pic.md, "Images"); the same for both modalities."""

from typing import Final

from PIL import Image
from torchvision import transforms

from sdcl.data.transforms import MEAN, STD

__all__ = ["INTERPOLATION", "training_view"]

INTERPOLATION: Final = "lanczos"
"""Of the one resize, for training and tests alike; tests see the resized image as it is, without its mirror image."""


def training_view(height: int, width: int, padding: int) -> transforms.Compose:
    """uint8 [height, width, 3] -> float32 [3, height, width], normalised: cropped at random out of a black frame of
    `padding` pixels, mirrored half the time. Random draws come from torch's default CPU generator."""
    return transforms.Compose(
        [
            Image.fromarray,
            transforms.Pad(padding),  # black, before normalisation
            transforms.RandomCrop((height, width)),
            transforms.RandomHorizontalFlip(0.5),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
