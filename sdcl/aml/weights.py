"""Files of weights for AML's networks: ImageNet's to start from, and the published program's checkpoints (method page,
section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sdcl.aml.network import BACKBONE, Network
from sdcl.errors import UserError
from sdcl.tensor_files import fill, read_weights, tensors_in

__all__ = ["backbone_names", "hand_over", "load_imagenet", "load_published", "published_stage"]

COUNTER = "num_batches_tracked"  # of batch normalisation; older files have none, and nothing here uses it
BESIDE_LAYERS = {"conv1": "backbone.0", "bn1": "backbone.1", "layer1": "backbone.4", "layer2": "backbone.5",
                 "layer3": "backbone.6", "layer4": "backbone.7"}  # fmt: skip
BEHIND_BACKBONE = {
    1: {"pool": "pool.0", "neck": "head.bnneck", "classifier": "head.classifier"},
    2: {"pool": "b1_pool.0", "neck": "b1_head.bnneck"},
}
"""What follows the backbone, in each stage's files. Stage 2's hold an unused second branch and classifier besides."""


def backbone_names(network: Network) -> list[str]:
    """Names of the tensors of conv1 … layer4 that a file must hold, sorted."""
    return sorted(n for n in network.state_dict() if n.startswith(BACKBONE) and not n.endswith(COUNTER))


def load_imagenet(network: Network, path: str | Path) -> None:
    """ImageNet weights under torchvision's names (timm's `resnet50.*` files carry the same) into the backbone.

    The published runs began from torchvision's first training (`resnet50-19c8e357.pth`, newer file
    `resnet50-0676ba61.pth`); files of other trainings have the same names and load too. `fc.*` is skipped; neck,
    pooling exponent and classifier stay as they are.

    Raises:
        UserError: not readable, a tensor of the backbone is missing, of another shape or not finite, or there are
            layers that this network has not; the network stays as it was.
    """
    data = read_weights(path)
    inner = next((data[k] for k in ("state_dict", "model") if isinstance(data.get(k), dict)), data)
    source = {n: t for n, t in tensors_in(inner, "module.").items() if not n.endswith(COUNTER)}
    names = backbone_names(network)
    unexpected = sorted(n for n in source.keys() - set(names) if not n.startswith("fc."))
    fill(network, source, {n: n for n in names}, path, unexpected)


def published_stage(entries: Mapping[str, Tensor]) -> int | None:
    """1 or 2: the stage whose published checkpoint has entries of these names; None: it is none."""
    if "model1.backbone.0.weight" not in entries:
        return None
    return next((s for s, names in BEHIND_BACKBONE.items() if f"model1.{names['pool']}.p" in entries), None)


def load_published(path: str | Path, **shape: object) -> tuple[int, Network, Network]:
    """A checkpoint of the published program: its stage, and networks 1 and 2 with its weights.

    shape: `Network`'s blocks and width, ResNet-50 by default. In stage 2 there is no classifier.

    Raises:
        UserError: not readable, no such checkpoint, or tensors missing, of another shape or not finite.
    """
    source = tensors_in(read_weights(path).get("model"))
    stage = published_stage(source)
    if stage is None:
        raise UserError(f"{path} is no checkpoint of the published AML program: no model1.backbone.0.weight with "
                        "model1.pool.0.p (stage 1) or model1.b1_pool.0.p (stage 2)")
    weight = source.get("model1.head.classifier.weight")
    classes = len(weight) if stage == 1 and weight is not None else None
    networks = []
    for k in (1, 2):
        network = Network(classes, **shape)  # type: ignore[arg-type]
        names = {n: _published_name(n, stage, k) for n in network.state_dict() if not n.endswith(COUNTER)}
        fill(network, source, names, path, [])
        networks.append(network)
    return stage, networks[0], networks[1]


def _published_name(name: str, stage: int, number: int) -> str:
    head, _, rest = name.partition(".")
    return f"model{number}.{(BESIDE_LAYERS | BEHIND_BACKBONE[stage])[head]}.{rest}"


def hand_over(network: Network, state: Mapping[str, Tensor], everything: bool) -> None:
    """Weights of the phase before into a network that begins a phase (section 6, "Hand-over").

    everything: all tensors; else the backbone alone: neck and pooling exponent of stage 1 are lost on the way to
    stage 2, since the published files name them otherwise (section 13.3), and start afresh.

    Raises KeyError when a tensor is missing.
    """
    own = network.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            if everything or name.startswith(BACKBONE):
                tensor.copy_(state[name])
