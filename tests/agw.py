"""AGW, the baseline of baselines: what its vectors check. PIC uses none of it but the parts that both have."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, resnet50

from sdcl.pic.losses import distances

NON_LOCAL = {"layer2": (2, 3), "layer3": (3, 4, 5)}
"""Stage → the blocks that a non-local block follows."""
POWER = 3.0
PREFIXES = {"visible": "visible_module.visible.", "infrared": "thermal_module.thermal.", "shared": "base_resnet.base."}


def weighted_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Weighted regularised triplet loss of un-normalised features [n, d] and labels int64 [n]: each row's positives,
    itself among them, weigh by e^(d − max d), its negatives by e^(−d)."""
    d = distances(features, features)
    same = (labels[:, None] == labels).to(d.dtype)
    furthest = (d * same).amax(1, keepdim=True)
    positive, negative = (d - furthest).exp() * same, (-d).exp() * (1 - same)
    positive, negative = (w / (w.sum(1, keepdim=True) + 1e-6) for w in (positive, negative))
    return F.softplus((positive * d).sum(1) - (negative * d).sum(1)).mean()


class NonLocal(nn.Module):
    """x [n, C, h, w] plus what every place sees of all others, by one inner channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.Conv2d(channels, 1, 1))
        self.theta, self.phi = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (part(x).flatten(1) for part in (self.theta, self.phi, self.g))  # [n, hw]
        seen = theta * (phi * g).sum(1, keepdim=True) / theta.shape[1]  # θᵀφ is of rank one
        return self.W(seen.view(len(x), 1, *x.shape[2:])) + x


class AGW(nn.Module):
    """Two stems, shared stages with non-local blocks, generalised-mean pooling, bottleneck, classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        nets = {name: resnet50() for name in PREFIXES}
        stem = ("conv1", "bn1", "relu", "maxpool")
        self.stems = nn.ModuleDict({
            m: nn.Sequential(OrderedDict((part, getattr(nets[m], part)) for part in stem))
            for m in ("visible", "infrared")
        })
        stages = [(f"layer{i}", getattr(nets["shared"], f"layer{i}")) for i in (1, 2, 3, 4)]
        self.shared = nn.Sequential(OrderedDict(stages))
        last: Bottleneck = self.shared.layer4[0]
        last.conv2.stride = last.downsample[0].stride = (1, 1)
        self.non_local = nn.ModuleDict({
            stage: nn.ModuleList(NonLocal(128 * 2 ** int(stage[-1])) for _ in blocks)
            for stage, blocks in NON_LOCAL.items()
        })
        self.bottleneck, self.classifier = nn.BatchNorm1d(2048), nn.Linear(2048, classes, bias=False)

    def pooled(self, images: dict[str, Tensor]) -> Tensor:
        """Images by modality to features [n, 2048], un-normalised, modalities one after another."""
        x = torch.cat([self.stems[m](part) for m, part in images.items()])
        for stage, blocks in self.shared.named_children():
            for number, block in enumerate(blocks):
                x = block(x)
                if number in NON_LOCAL.get(stage, ()):
                    x = self.non_local[stage][NON_LOCAL[stage].index(number)](x)
        return (x.flatten(2).pow(POWER).mean(2) + 1e-12).pow(1 / POWER)

    def published_names(self) -> dict[str, str]:
        """Names here → names in AGW's files."""
        names = {}
        for own in self.state_dict():
            room, _, rest = own.partition(".")
            if room == "stems":
                names[own] = PREFIXES[rest.partition(".")[0]] + rest.partition(".")[2]
            elif room == "shared":
                names[own] = PREFIXES["shared"] + rest
            elif room == "non_local":
                names[own] = f"NL_{rest.removeprefix('layer')}"
            else:
                names[own] = own
        return names


def network_of(state: dict[str, Tensor], like: Tensor) -> AGW:
    """A network with these weights, on the device and in the dtype of the images."""
    network = AGW(len(state["classifier.weight"]))
    names, own = network.published_names(), network.state_dict()
    network.load_state_dict({ours: state.get(theirs, own[ours]) for ours, theirs in names.items()})
    return network.to(like)


def learning_rates(epoch: int) -> dict[str, float]:
    """SGD's rates of epoch 0, 1, …: warm-up to epoch 9, a tenth from 20, a hundredth from 50; the backbone has a tenth
    of each."""
    rate = 0.1 * (epoch + 1) / 10 if epoch < 10 else 0.1 if epoch < 20 else 0.01 if epoch < 50 else 0.001
    return {"lr_backbone": 0.1 * rate, "lr_bottleneck": rate, "lr_classifier": rate}
