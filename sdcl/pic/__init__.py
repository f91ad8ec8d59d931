"""PIC, the supervised reference: partially interactive collaboration of two modalities (docs/pic.md).

`step.train_step` is the whole step: `network` (branches, mean branches, shared layers) → `losses` → Adam.
"""

from sdcl.pic.losses import pic_losses
from sdcl.pic.network import Outputs, PICNetwork
from sdcl.pic.settings import PICConfig, PICModelConfig
from sdcl.pic.step import make_optimizer, train_epoch, train_step
from sdcl.pic.weights import build_network, load_imagenet, load_published

__all__ = [
    "Outputs",
    "PICConfig",
    "PICModelConfig",
    "PICNetwork",
    "build_network",
    "load_imagenet",
    "load_published",
    "make_optimizer",
    "pic_losses",
    "train_epoch",
    "train_step",
]
