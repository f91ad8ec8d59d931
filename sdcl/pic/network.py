"""PIC's network: two shallow branches, a slow copy of each, shared deep layers (docs/pic.md, "Network")."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.models.resnet import Bottleneck, conv1x1

from sdcl.pic.settings import PICConfig, PICModelConfig

__all__ = ["MODALITIES", "Outputs", "PICNetwork"]

MODALITIES = ("visible", "infrared")


class Outputs(NamedTuple):
    """What a training pass gives for the m images of one modality. Without mean branches the last two are None."""

    features: Tensor
    """[m, D] pooled, un-normalised, from the trained branch."""
    logits: Tensor
    """[m, identities] of them."""
    mean_features: Tensor | None = None
    """[m, D] of the same images from the mean branch; carries no gradient."""
    mean_logits: Tensor | None = None
    """[m, identities] of them; carries no gradient."""


class PICNetwork(nn.Module):
    """Two trained shallow branches, their mean branches, shared layers, bottleneck and classifier.

    A mean branch is never trained: at every training pass of its modality it moves by 1 − `momentum` towards the
    trained branch, in all its weights, before it is used. Its running statistics are those of its own passes and are
    not averaged. It is the mean branches that are tested.

    Args:
        config: `model` (sizes), `mean_momentum` and `mean_branches`.
        identities: number of training identities, the classifier's outputs.

    Weights are random (torch's global generator) until `sdcl.pic.weights` fills them.
    """

    def __init__(self, config: PICConfig, identities: int) -> None:
        super().__init__()
        sizes, self.momentum = config.model, config.mean_momentum
        self.branches = nn.ModuleDict({m: _shallow_layers(sizes) for m in MODALITIES})
        self.mean_branches: nn.ModuleDict | None = None
        if config.mean_branches:
            self.mean_branches = nn.ModuleDict({m: _shallow_layers(sizes) for m in MODALITIES}).requires_grad_(False)
        self.shared = _deep_layers(sizes)
        self.bottleneck = nn.BatchNorm1d(sizes.dim)
        self.bottleneck.bias.requires_grad_(False)  # stays 0
        self.classifier = nn.Linear(sizes.dim, identities, bias=False)
        self._initialise()

    @property
    def convolutional(self) -> list[nn.Module]:
        """The parts that take nearly all the time: branches, mean branches, shared layers."""
        mean = () if self.mean_branches is None else self.mean_branches.values()
        return [*self.branches.values(), *mean, self.shared]

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Outputs, Outputs]:
        """A training pass: moves the mean branches, then embeds and classifies by trained and by mean branches.

        Trained rows of both modalities are one batch for the shared layers, mean rows another, in this order: each has
        its own batch statistics, and the running ones of the shared layers move twice.

        Args:
            visible: normalised images [m, 3, H, W].
            infrared: the same [n, 3, H, W].

        Returns:
            the outputs of the visible and of the infrared images.
        """
        images = {"visible": visible, "infrared": infrared}
        sizes = [len(visible), len(infrared)]
        maps = torch.cat([self.branches[m](x) for m, x in images.items()])
        mean_maps = None
        if self.mean_branches is not None:
            with torch.no_grad():
                for m in MODALITIES:
                    self.move_mean(m)
                mean_maps = torch.cat([self.mean_branches[m](x) for m, x in images.items()])

        features = self._pooled(maps)
        logits = self._logits(features)
        rows = [features, logits]
        if mean_maps is not None:
            with torch.no_grad():
                mean_features = self._pooled(mean_maps)
                rows += [mean_features, self._logits(mean_features)]
        of_visible, of_infrared = zip(*(x.split(sizes) for x in rows), strict=True)
        return Outputs(*of_visible), Outputs(*of_infrared)

    @torch.no_grad()
    def embed(self, images: Tensor, modality: str) -> dict[str, Tensor]:
        """Embeddings of images [B, 3, H, W] of one modality by the mean branch (as it stands, it does not move).

        In evaluation mode this is what is tested. Rows have length 1.

        Returns:
            "pooled": [B, D], the pooled features; "normalised": [B, D], the same behind the bottleneck.
        """
        branches = self.branches if self.mean_branches is None else self.mean_branches
        pooled = self._pooled(branches[modality](images))
        return {"pooled": F.normalize(pooled), "normalised": F.normalize(self.bottleneck(pooled))}

    @torch.no_grad()
    def move_mean(self, modality: str, moves: int = 1) -> None:
        """mean ← momentum · mean + (1 − momentum) · trained for every weight of the branch, `moves` times at once."""
        if self.mean_branches is not None and moves > 0:
            mean, trained = (list(b[modality].parameters()) for b in (self.mean_branches, self.branches))
            get_ema_multi_avg_fn(self.momentum**moves)(mean, trained, 0)

    def copy_branches(self) -> None:
        """Makes the infrared branch equal to the visible one and the mean branches to both, statistics included."""
        self.branches["infrared"].load_state_dict(self.branches["visible"].state_dict())
        if self.mean_branches is not None:
            self.mean_branches.load_state_dict(self.branches.state_dict())

    def _pooled(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] of the shallow branches to pooled features [B, D].

        In the weights' dtype, so that under autocast averages, bottleneck and losses are not rounded to bfloat16.
        """
        return self.shared(maps).to(self.bottleneck.weight.dtype).mean((2, 3))

    def _logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.bottleneck(features)).to(features.dtype)

    def _initialise(self) -> None:
        """Convolutions as in He et al. (2015), for networks without ImageNet weights; bottleneck and classifier as
        published: N(1, 0.01²) and N(0, 0.001²)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.copy_branches()
        nn.init.normal_(self.bottleneck.weight, 1.0, 0.01)
        nn.init.normal_(self.classifier.weight, 0.0, 0.001)


def _shallow_layers(sizes: PICModelConfig) -> nn.Sequential:
    """Images [n, 3, H, W] to maps [n, 8·width, H/8, W/8]; torchvision's names."""
    width, blocks = sizes.width, sizes.blocks
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
        "layer1": _stage(width, width, blocks[0], stride=1),
        "layer2": _stage(4 * width, 2 * width, blocks[1], stride=2),
    }
    return nn.Sequential(OrderedDict(layers))


def _deep_layers(sizes: PICModelConfig) -> nn.Sequential:
    """Maps [n, 8·width, h, w] to [n, 32·width, h/2, w/2]: the last stage keeps the resolution."""
    width, blocks = sizes.width, sizes.blocks
    layers = {
        "layer3": _stage(8 * width, 4 * width, blocks[2], stride=2),
        "layer4": _stage(16 * width, 8 * width, blocks[3], stride=1),
    }
    return nn.Sequential(OrderedDict(layers))


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """Residual blocks from `inputs` to 4 · planes channels, the first one with the stride."""
    outputs = planes * Bottleneck.expansion
    shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    first = Bottleneck(inputs, planes, stride, shortcut)
    return nn.Sequential(first, *(Bottleneck(outputs, planes) for _ in range(blocks - 1)))
