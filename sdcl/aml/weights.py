"""Files of weights for AML's networks: ImageNet's to start from, and the published program's checkpoints (method page,
section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sdcl.aml.network import BACKBONE, Network
from sdcl.errors import UserError
from sdcl.tensor_files import fill, read_weights, tensors_in

__all__ = ["backbone_names", "load_imagenet", "load_published", "published_stage"]

COUNTER = "num_batches_tracked"  # of batch normalisation; older files have none, and nothing here uses it
BESIDE_LAYERS = {"conv1": "backbone.0", "bn1": "backbone.1", "layer1": "backbone.4", "layer2": "backbone.5",
                 "layer3": "backbone.6", "layer4": "backbone.7"}  # fmt: skip
BEHIND_BACKBONE = {
    1: {"pool": "pool.0", "neck": "head.bnneck"},
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


def load_published(path: str | Path, first: Network, second: Network | None = None) -> list[Tensor]:
    """A checkpoint of the published program into network 1 and, if it is given, network 2; their `stage` is set.

    Returns:
        the classifiers' weights [classes, dim] of networks 1 and 2 in a file of stage 1; none in one of stage 2.

    Raises:
        UserError: not readable, no such checkpoint, or tensors missing, of another shape or not finite.
    """
    source = tensors_in(read_weights(path).get("model"))
    stage = published_stage(source)
    if stage is None:
        raise UserError(
            f"{path} is no checkpoint of the published AML program: no model1.backbone.0.weight with model1.pool.0.p "
            "(stage 1) or model1.b1_pool.0.p (stage 2)"
        )
    networks = {1: first} if second is None else {1: first, 2: second}
    for number, network in networks.items():
        own = (n for n in network.state_dict() if n != "stage" and not n.endswith(COUNTER))
        fill(network, source, {n: _published_name(n, stage, number) for n in own}, path, [])
        network.stage.fill_(stage)
    names = [f"model{number}.head.classifier.weight" for number in networks] if stage == 1 else []
    return [source[name] for name in names if name in source]


def _published_name(name: str, stage: int, number: int) -> str:
    head, _, rest = name.partition(".")
    return f"model{number}.{(BESIDE_LAYERS | BEHIND_BACKBONE[stage])[head]}.{rest}"
