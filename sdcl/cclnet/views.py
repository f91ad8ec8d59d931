"""One random training view of an image (CCLNet page, section 3)."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision import transforms

from sdcl.data.transforms import MEAN, STD

__all__ = ["TrainingView"]


class TrainingView:
    """uint8 [height, width, 3] to float32 [3, height, width]: normalised with ImageNet's statistics, randomly changed.

    Greyed in half of the cases if visible, flipped in half, shifted within a black border, and in half of the cases
    erased in a rectangle, to 0 after normalisation. Draws come from torch's global generator.

    Args:
        modality: "visible" or "infrared". size: height and width, to which the image has been resized (Lanczos).
        padding: pixels of black around the image before the random crop.
    """

    def __init__(self, modality: str, size: tuple[int, int], padding: int = 10) -> None:
        grey = [transforms.RandomGrayscale(0.5)] if modality == "visible" else []
        self.steps = transforms.Compose(
            [
                *grey,
                transforms.RandomHorizontalFlip(0.5),
                transforms.Pad(padding),
                transforms.RandomCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0),
            ]
        )

    def __call__(self, pixels: np.ndarray) -> Tensor:
        return self.steps(Image.fromarray(pixels))
