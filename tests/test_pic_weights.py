"""PIC's weight files: ImageNet weights in torchvision's names, files of the published program."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdcl.errors import UserError
from sdcl.pic import PICModelConfig, PICNetwork, build_network, load_published
from sdcl.pic.presets import PRESETS
from sdcl.pic.weights import published_state_dict


def _config(width=4, **changes):
    model = PICModelConfig(image_height=32, image_width=16, width=width, blocks=(1, 1, 1, 1), **changes)
    return replace(PRESETS["sysu"], model=model)


def write_imagenet(path, change=lambda state: state, width=4):
    """Writes a ResNet file in torchvision's names, without counters, as torchvision's own; returns its tensors."""
    torch.manual_seed(5)
    network = PICNetwork(_config(width), identities=2)
    state = {**network.branches["visible"].state_dict(), **network.shared.state_dict()}
    state = {k: torch.rand_like(v) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.zeros(10, 32 * width), "fc.bias": torch.zeros(10)}
    torch.save(change(state), path)
    return state


@pytest.fixture
def file(tmp_path):
    return tmp_path / "resnet.pth"


def test_imagenet_weights_go_into_every_part(file):
    state = write_imagenet(file)
    network = build_network(_config(pretrained=str(file)), identities=3)
    parts = [b[m] for b in (network.branches, network.mean_branches) for m in ("visible", "infrared")]
    for part in (*parts, network.shared):
        for name, tensor in part.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, state[name]), name
    assert network.classifier.weight.shape == (3, 128)


def test_bottleneck_and_classifier_are_drawn_as_published():
    torch.manual_seed(0)
    network = PICNetwork(_config(width=16), identities=100)
    for x, mean, std in ((network.bottleneck.weight, 1.0, 0.01), (network.classifier.weight, 0.0, 0.001)):
        assert float(x.detach().mean()) == pytest.approx(mean, abs=5 * std / x.numel() ** 0.5)
        assert float(x.detach().std()) == pytest.approx(std, rel=0.1)
    assert not network.bottleneck.bias.any() and not network.bottleneck.bias.requires_grad


def test_all_branches_start_equal():
    network = PICNetwork(_config(), identities=3)
    parts = [b[m].state_dict() for b in (network.branches, network.mean_branches) for m in ("visible", "infrared")]
    assert all(torch.equal(parts[0][k], part[k]) for part in parts[1:] for k in parts[0])


def test_a_missing_file_says_where_such_weights_come_from(tmp_path):
    with pytest.raises(UserError, match=r"no ImageNet weights at .*nowhere.pth.*resnet50-19c8e357.pth.*--pretrained"):
        build_network(_config(pretrained=str(tmp_path / "nowhere.pth")), identities=2)


@pytest.mark.parametrize(
    ("change", "width", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "layer3.0.conv1.weight"}, 4, "1 missing: layer3.0.conv1.weight"),
        (lambda s: s | {"layer1.1.conv1.weight": torch.zeros(1)}, 4, "1 unexpected: layer1.1.conv1.weight"),
        (lambda s: s | {"conv1.weight": s["conv1.weight"] * torch.nan}, 4, "1 not finite: conv1.weight"),
        (lambda s: s, 8, "of another shape"),
    ],
)
def test_weights_of_another_network_are_refused(file, change, width, message):
    write_imagenet(file, change, width)
    with pytest.raises(UserError, match=message):
        build_network(_config(pretrained=str(file)), identities=2)


def _published_file(folder, **more):
    network = PICNetwork(_config(), identities=7)
    for t in network.state_dict().values():
        t.copy_(torch.randn_like(t) if t.is_floating_point() else torch.tensor(12))
    unused = {"visible_module.net.visible.layer4.0.conv1.weight": torch.zeros(2), "base_resnet_share.base.conv1.weight":
              torch.zeros(1)}  # fmt: skip
    path = folder / "published.t"
    curve = {"cmc": np.linspace(0.5, 1.0, 5), "mAP": np.float64(0.5), "mINP": 0.25, "epoch": 12}
    torch.save({"net": published_state_dict(network) | unused, **curve, **more}, path)
    return path, network


def test_a_published_file_loads_and_what_it_does_not_use_is_one_line(tmp_path, caplog):
    path, network = _published_file(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = PICNetwork(_config(), identities=1)
        load_published(loaded, path)
    assert [r.message for r in caplog.records] == [f"{path}: 2 tensors take no part in PIC and are ignored"]
    state = loaded.state_dict()
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())


def test_a_published_file_of_other_sizes_or_another_kind_is_refused(tmp_path, file):
    path, _ = _published_file(tmp_path)
    with pytest.raises(UserError, match="does not fit the model"):
        load_published(PICNetwork(_config(width=8), identities=7), path)
    with pytest.raises(UserError, match="whole trained PIC network"):
        other = tmp_path / "bare.pth"
        torch.save(torch.load(path, weights_only=False)["net"], other)
        build_network(_config(pretrained=str(other)), identities=7)
    write_imagenet(file)
    with pytest.raises(UserError, match="no checkpoint of the published PIC program"):
        load_published(PICNetwork(_config(), identities=7), file)
