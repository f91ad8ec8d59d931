"""AML's networks: ResNet-50, generalised-mean pooling, batch-normalised neck (method page, section 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from sdcl.aml.views import one_channel

__all__ = ["BACKBONE", "Classifiers", "GeneralizedMeanPool", "Network", "Pair", "embed_pair"]

BACKBONE = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
"""Names of the tensors that go from stage 1 to stage 2 begin with one of these (section 6, "Hand-over")."""
EXPANSION = 4  # of torchvision's Bottleneck: channels out of a block for each channel inside


class GeneralizedMeanPool(nn.Module):
    """GeM: (mean over positions of max(x, 1e-6)^p)^(1/p) with a learned exponent p, from 3."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C]; in float32 whatever the precision around it, as powers leave half precision."""
        with torch.autocast(x.device.type, enabled=False):
            return x.float().clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class Network(nn.Module):
    """Images to features; tensors named as in torchvision's ResNet, plus `pool.p`, `neck.*` and `stage`.

    torchvision's v1.5 (stride in the 3×3 convolution) with stride 1 in the last stage, so that 384×128 pixels give
    24×8 positions. The published settings ask for non-local blocks too, but the published network is assembled without
    them (section 13.1), and so is this one.

    Args:
        blocks: of each of the four layers; ResNet-50 by default.
        width: channels of the first convolution, 64 in ResNet-50; features have 32 times as many (`dim`).
        feature_norm: of test features. 1 divides by the sum of absolute values, as the published program does (an L1
            norm where L2 was surely meant; it shapes the results, section 13.2), 2 by the length.

    Attributes:
        stage: int64 buffer, 1 or 2: whose test features these weights have.
    """

    stage: Tensor

    def __init__(self, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64, feature_norm: int = 1) -> None:
        super().__init__()
        self.dim, self.feature_norm = 32 * width, feature_norm
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(width, width, blocks[0], stride=1)
        self.layer2 = _layer(4 * width, 2 * width, blocks[1], stride=2)
        self.layer3 = _layer(8 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _layer(16 * width, 8 * width, blocks[3], stride=1)
        self.pool = GeneralizedMeanPool()
        self.neck = nn.BatchNorm1d(self.dim)
        self.neck.bias.requires_grad_(False)
        self.register_buffer("stage", torch.tensor(1))
        self.begin_head()

    @torch.no_grad()
    def begin_head(self) -> None:
        """Pooling exponent and neck as they begin: p = 3, weight from N(1, 0.02), bias and mean 0, variance 1."""
        self.pool.p.fill_(3.0)
        self.neck.reset_parameters()
        nn.init.normal_(self.neck.weight, 1.0, 0.02)

    def pooled(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to features before the neck, float32 [B, dim]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.pool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to features, float32 [B, dim], not normalised."""
        pooled = self.pooled(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.neck(pooled)

    def test_features(self, x: Tensor) -> Tensor:
        """What clustering and tests use of normalised images [B, 3, H, W] (section 3): [B, dim] of norm 1.

        Of weights of stage 1 the features before the neck, of stage 2 the neck's output; the network should be in
        evaluation mode.
        """
        pooled = self.pooled(x)
        with torch.autocast(x.device.type, enabled=False):
            chosen = torch.where(self.stage == 1, pooled, self.neck(pooled))  # no wait for the device, and exportable
        return F.normalize(chosen, p=self.feature_norm, dim=1)


class Pair(nn.Module):
    """Networks 1 and 2: one architecture, nothing shared. Network 1 alone is tested."""

    def __init__(self, first: Network, second: Network) -> None:
        super().__init__()
        self.first, self.second = first, second

    @property
    def networks(self) -> tuple[Network, Network]:
        return self.first, self.second


class Classifiers(nn.ModuleList):
    """Those of networks 1 and 2 for stage 1: weights [classes, dim], uniform within ±1/√dim as nn.Linear begins."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(nn.Linear(dim, classes, bias=False) for _ in range(2))

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """[classes, dim] of network 1 and network 2."""
        return self[0].get_parameter("weight"), self[1].get_parameter("weight")


def embed_pair(pair: Pair, x: Tensor, channels: Tensor) -> Tensor:
    """Test features of both networks, [p1 ; p2]: [B, 2·dim] of normalised images x [B, 3, H, W] (section 3).

    Network 1 sees x, network 2 its channel view; each row is the mean over the image and its mirror image, taken after
    the division by the norm, and of no particular length.

    Args:
        channels: int64 [B, 2], 0 … 2: what network 2 sees of the image and of its mirror image. Drawn at random in
            clustering too, as in the published runs (section 13.5).
    """
    sides = []
    for k, view in enumerate((x, x.flip(3))):
        p1 = pair.first.test_features(view)
        p2 = pair.second.test_features(one_channel(view, channels[:, k]))
        sides.append(torch.cat([p1, p2], dim=1))
    return (sides[0] + sides[1]) / 2


def _layer(channels: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    """A ResNet stage: the first block strides and widens, with a projection beside it."""
    out = inner * EXPANSION
    shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    first = Bottleneck(channels, inner, stride, shortcut)
    return nn.Sequential(first, *(Bottleneck(out, inner) for _ in range(blocks - 1)))
