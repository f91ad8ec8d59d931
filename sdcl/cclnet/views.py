"""One random training view of an image (CCLNet page, section 3)."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from torchvision import transforms

from sdcl.data.transforms import MEAN, STD, resize

__all__ = ["TrainingView"]


class TrainingView:
    """PIL RGB of any size to float32 [3, height, width]: normalised with ImageNet's statistics, randomly changed.

    Resized with Lanczos, greyed in half of the cases if visible, flipped in half, shifted within a black border, and
    in half of the cases erased in a rectangle, to 0 after normalisation. Draws come from torch's global generator.

    Args:
        modality: "visible" or "infrared". padding: pixels of black around the image before the random crop.
    """

    def __init__(self, modality: str, height: int, width: int, padding: int = 10) -> None:
        grey = [transforms.RandomGrayscale(0.5)] if modality == "visible" else []
        self.steps = transforms.Compose(
            [
                resize(height, width, "lanczos"),
                *grey,
                transforms.RandomHorizontalFlip(0.5),
                transforms.Pad(padding),
                transforms.RandomCrop((height, width)),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0),
            ]
        )

    def __call__(self, image: Image.Image) -> Tensor:
        return self.steps(image)
