"""From a PIL image to what PIC's network sees in training (docs/pic.md, "Images"); the same for both modalities.

The test view is `sdcl.data.transforms.evaluation_transform` with the same interpolation, without a mirror image.
"""

from torchvision import transforms

from sdcl.data.transforms import MEAN, STD, resize

__all__ = ["INTERPOLATION", "training_view"]

INTERPOLATION = "lanczos"
"""Of the one resize, for training and tests alike."""


def training_view(height: int, width: int, padding: int) -> transforms.Compose:
    """PIL RGB of any size -> float32 [3, height, width], normalised: resized, cropped at random out of a black frame of
    `padding` pixels, mirrored half the time. Random draws come from torch's default CPU generator."""
    return transforms.Compose(
        [
            resize(height, width, INTERPOLATION),
            transforms.Pad(padding),  # black, before normalisation
            transforms.RandomCrop((height, width)),
            transforms.RandomHorizontalFlip(0.5),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

