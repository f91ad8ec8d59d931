"""Weight files of PIC: ImageNet weights to start from, and trained networks in the published program's names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcl.errors import UserError
from sdcl.pic.network import PICNetwork
from sdcl.pic.settings import PICConfig
from sdcl.tensor_files import fill, read_weights, tensors_in

__all__ = ["build_network", "is_published", "load_imagenet", "load_published", "published_names",
           "published_state_dict"]  # fmt: skip

log = logging.getLogger(__name__)

PUBLISHED_PREFIXES = (
    # this project              the published program
    ("branches.visible.", "visible_module.net.visible."),
    ("branches.infrared.", "thermal_module.net.thermal."),
    ("mean_branches.visible.", "visible_module.mean_net.visible."),
    ("mean_branches.infrared.", "thermal_module.mean_net.thermal."),
    ("shared.", "base_resnet_share.base."),
    ("bottleneck.", "bottleneck."),
    ("classifier.", "classifier."),
)
BACKBONE_PARTS = ("branches.visible.", "shared.")
COUNTER = "num_batches_tracked"


def build_network(config: PICConfig, identities: int) -> PICNetwork:
    """The network with random weights (torch's global generator) or, with `config.model.pretrained`, from ImageNet
    weights.

    Raises:
        UserError: the pre-trained weights are missing, unreadable or of another architecture.
    """
    network = PICNetwork(config, identities)
    if config.model.pretrained is not None:
        load_imagenet(network, config.model.pretrained)
    return network


def load_imagenet(network: PICNetwork, path: str | Path) -> None:
    """Fills both branches, both mean branches and the shared layers from a ResNet in torchvision's names.

    Its classifier `fc` is left aside. Counters of seen batches may be absent, as in torchvision's own file.

    Raises:
        UserError: no such file (the message says where such weights come from), not readable, or of another
            architecture; the network then stays as it was.
    """
    if not Path(path).is_file():
        raise UserError(
            f"no ImageNet weights at {path}: they are torchvision's ResNet-50 (IMAGENET1K_V1), the file "
            "resnet50-19c8e357.pth, which https://download.pytorch.org/models/resnet50-19c8e357.pth offers; put it "
            "there or name it with --pretrained"
        )
    data = read_weights(path)
    source = tensors_in(data.get("state_dict", data), "module.")
    if is_published(source):
        raise UserError(f"{path} is a whole trained PIC network, not ImageNet weights to start from; give it to a test "
                        "as --checkpoint")  # fmt: skip
    names = {own: own.removeprefix(part) for own in network.state_dict() for part in BACKBONE_PARTS
             if own.startswith(part)}  # fmt: skip
    names = {own: theirs for own, theirs in names.items() if theirs in source or not theirs.endswith(COUNTER)}
    unexpected = sorted(name for name in source.keys() - set(names.values()) if not name.startswith("fc."))
    fill(network, source, names, path, unexpected)
    network.copy_branches()


def is_published(tensors: dict[str, Tensor]) -> bool:
    """Whether these are the names of the published program."""
    return any(name.startswith("base_resnet_share.") for name in tensors)


def published_names(network: PICNetwork) -> dict[str, str]:
    """This network's names of parameters and buffers → the published program's (756 of a ResNet-50)."""
    return {own: theirs + own.removeprefix(ours) for own in network.state_dict()
            for ours, theirs in PUBLISHED_PREFIXES if own.startswith(ours)}  # fmt: skip


def published_state_dict(network: PICNetwork) -> dict[str, Tensor]:
    """The network's tensors by their published names; the tensors themselves, not copies."""
    names = published_names(network)
    return {names[own]: t for own, t in network.state_dict().items()}


def load_published(network: PICNetwork, path: str | Path) -> None:
    """Fills a network from a file of the published program: {"net": tensors, …} or the tensors alone.

    The classifier takes the file's number of identities. What nothing uses there (ImageNet copies of the layers that
    the other parts have) is ignored with one line.

    Raises:
        UserError: no such file, not readable, not of this kind, of other sizes, or not whole.
    """
    data: dict[str, Any] = read_weights(path)
    source = tensors_in(data.get("net", data), "module.")
    classifier = source.get("classifier.weight")
    if not is_published(source) or classifier is None:
        raise UserError(f"{path} is no checkpoint of the published PIC program: it has no tensors "
                        "base_resnet_share.… and classifier.weight")  # fmt: skip
    network.classifier = nn.Linear(network.classifier.in_features, len(classifier), bias=False)
    unused = fill_published(network, source, path)
    if unused:
        log.warning(f"{path}: {len(unused)} tensors take no part in PIC and are ignored")


@torch.no_grad()
def fill_published(network: PICNetwork, source: dict[str, Tensor], path: str | Path) -> list[str]:
    """Copies tensors of published names into the network and returns the names that it has no use for.

    Raises:
        UserError: one is missing (counters of seen batches may be) or of another shape; the network stays as it was.
    """
    names = {own: theirs for own, theirs in published_names(network).items()
             if theirs in source or not theirs.endswith(COUNTER)}  # fmt: skip
    fill(network, source, names, path, [])
    return sorted(source.keys() - set(names.values()))
