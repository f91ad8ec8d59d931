"""PIC, the supervised reference: partially interactive collaboration of two modalities (docs/pic.md).

`step.train_step` is the whole step: `network` (branches, mean branches, shared layers) → `losses` → Adam.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcl.pic.losses import pic_losses
    from sdcl.pic.network import Outputs, PICNetwork
    from sdcl.pic.settings import PICConfig, PICModelConfig
    from sdcl.pic.step import make_optimizer, train_epoch, train_step
    from sdcl.pic.weights import build_network, load_imagenet, load_published

# Each is imported when it is first asked for: settings, and so --help, need no torch.
_ROOM_OF = {
    "Outputs": "network", "PICConfig": "settings", "PICModelConfig": "settings", "PICNetwork": "network",
    "build_network": "weights", "load_imagenet": "weights", "load_published": "weights", "make_optimizer": "step",
    "pic_losses": "losses", "train_epoch": "step", "train_step": "step",
}  # fmt: skip

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


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'sdcl.pic' has no attribute '{name}'")
    return getattr(import_module(f"sdcl.pic.{_ROOM_OF[name]}"), name)
