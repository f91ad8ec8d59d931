"""AML's network, views and weight files."""

import pytest
import torch
from torchvision.models import resnet50

from sdcl.aml.network import GeneralizedMeanPool, Network, embed_pair
from sdcl.aml.views import normalise, one_channel, views
from sdcl.aml.weights import backbone_names, hand_over, load_imagenet, load_published
from sdcl.errors import UserError

SMALL = {"blocks": (1, 1, 1, 1), "width": 4}


def small(classes=None):
    return Network(classes, **SMALL)


def test_resnet_50_has_torchvisions_tensors_and_no_stride_in_the_last_stage():
    ours, theirs = Network().state_dict(), resnet50().state_dict()
    backbone = {n: t.shape for n, t in theirs.items() if not n.startswith("fc.")}
    extra = {"pool.p", *(f"neck.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))}
    assert {n: t.shape for n, t in ours.items() if n not in extra} == backbone
    assert ours.keys() >= extra
    strides = [m.stride for m in Network().layer4.modules() if isinstance(m, torch.nn.Conv2d)]
    assert set(strides) == {(1, 1)}


def test_features_are_torchvisions_up_to_the_pooling():
    net, theirs = Network().eval(), resnet50().eval()
    theirs.load_state_dict({n: t for n, t in net.state_dict().items() if n in theirs.state_dict()}, strict=False)
    for m in theirs.layer4.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.stride = (1, 1)
    theirs.avgpool, theirs.fc = torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        positions = theirs(x).reshape(2, 2048, -1)
        want = positions.clamp(min=1e-6).pow(3).mean(2).pow(1 / 3)
        torch.testing.assert_close(net.pooled(x), want, rtol=1e-4, atol=1e-6)


def test_pooling_with_exponent_1_is_the_mean_and_a_large_one_the_maximum():
    x, pool = torch.rand(2, 3, 4, 5) + 0.5, GeneralizedMeanPool()
    pool.p.data.fill_(1.0)
    torch.testing.assert_close(pool(x), x.mean((2, 3)))
    pool.p.data.fill_(80.0)
    torch.testing.assert_close(pool(x), x.amax((2, 3)), rtol=0.05, atol=0)


def test_what_learns():
    net = small(classes=5)
    frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
    assert frozen == ["neck.bias"]
    assert float(net.classifier.weight.abs().max()) <= net.dim**-0.5
    with pytest.raises(ValueError, match="classifier"):
        small().logits(torch.randn(2, 128), torch.tensor([0, 1]))


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("norm", [1, 2])
def test_test_features_have_norm_one_and_are_those_of_their_stage(stage, norm):
    net, x = small().eval(), torch.randn(3, 3, 32, 16)
    net.neck.running_mean.fill_(0.3)
    with torch.no_grad():
        got = net.test_features(x, stage, norm)
        want = net.pooled(x) if stage == 1 else net(x)
    torch.testing.assert_close(got.norm(p=norm, dim=1), torch.ones(3))
    torch.testing.assert_close(got * want.norm(p=norm, dim=1, keepdim=True), want)


def test_pair_of_rows_is_the_mean_over_image_and_flip_of_both_networks():
    first, second, x = small().eval(), small().eval(), torch.randn(2, 3, 32, 16)
    channels = torch.tensor([[0, 2], [1, 1]])
    with torch.no_grad():
        got = embed_pair(first, second, x, channels, stage=2)
        p1 = (first.test_features(x, 2) + first.test_features(x.flip(3), 2)) / 2
        p2 = second.test_features(one_channel(x, channels[:, 0]), 2)
        p2 = (p2 + second.test_features(one_channel(x.flip(3), channels[:, 1]), 2)) / 2
    torch.testing.assert_close(got, torch.cat([p1, p2], 1))


def test_views():
    pixels, generated = torch.randint(0, 256, (3, 3, 4, 2)), torch.randint(0, 256, (3, 3, 4, 2))
    channels = torch.tensor([2, 0, 1])
    visible, target = views(pixels, None, channels)
    torch.testing.assert_close(visible, normalise(pixels))
    for i, c in enumerate(channels.tolist()):
        for k in range(3):
            assert torch.equal(target[i, k], visible[i, c])  # keeps its own mean and deviation
    _, source = views(pixels, generated, channels)
    torch.testing.assert_close(source, 0.2 * normalise(generated) + 0.8 * target)


def imagenet_like(net):
    state = {n: torch.rand_like(t) for n, t in net.state_dict().items() if n in backbone_names(net)}
    return state | {"fc.weight": torch.zeros(1000, net.dim), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("counters", [True, False])
def test_imagenet_weights_fill_the_backbone_alone(tmp_path, counters):
    net = small(classes=3)
    state, before = imagenet_like(net), {n: t.clone() for n, t in net.state_dict().items()}
    torch.save(state | ({"bn1.num_batches_tracked": torch.tensor(7)} if counters else {}), tmp_path / "w.pth")
    load_imagenet(net, tmp_path / "w.pth")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state.get(name, before[name])), name


def broken(state, kind):
    if kind == "missing":
        del state["layer3.0.bn2.running_var"]
    elif kind == "deeper":
        state["layer3.5.conv1.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    else:
        state["bn1.weight"][0] = torch.nan
    return state


@pytest.mark.parametrize("kind", ["missing", "deeper", "shape", "nan"])
def test_incomplete_or_other_weights_are_refused_and_change_nothing(tmp_path, kind):
    net = small()
    before = net.conv1.weight.clone()
    torch.save(broken(imagenet_like(net), kind), tmp_path / "w.pth")
    with pytest.raises(UserError, match="w.pth"):
        load_imagenet(net, tmp_path / "w.pth")
    assert torch.equal(net.conv1.weight, before)


def published_file(path, stage, nets):
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    head = "" if stage == 1 else "b1_"
    names = {"pool": f"{head}pool.0", "neck": f"{head}head.bnneck", "classifier": f"{head}head.classifier"}
    entries = {"pixel_mean": torch.zeros(1, 3, 1, 1), "pixel_std": torch.ones(1, 3, 1, 1)}
    for k, net in enumerate(nets, 1):
        for name, tensor in net.state_dict().items():
            first, rest = name.split(".", 1)
            place = f"backbone.{places[first]}" if first in places else names[first]
            entries[f"model{k}.{place}.{rest}"] = tensor
        if stage == 2:
            entries[f"model{k}.b2_head.bnneck.weight"] = torch.zeros(3)
            entries[f"model{k}.b1_head.classifier.weight"] = torch.zeros(3, 3)
    torch.save({"model": entries, "iteration": 14999}, path)


@pytest.mark.parametrize("stage", [1, 2])
def test_published_checkpoints(tmp_path, stage):
    nets = [small(5 if stage == 1 else None) for _ in range(2)]
    published_file(tmp_path / "model_final.pth", stage, nets)
    got, *loaded = load_published(tmp_path / "model_final.pth", **SMALL)
    assert got == stage
    for ours, theirs in zip(loaded, nets, strict=True):
        for name, tensor in theirs.state_dict().items():
            assert name.endswith("num_batches_tracked") or torch.equal(ours.state_dict()[name], tensor), name


def test_other_files_are_no_published_checkpoint(tmp_path):
    torch.save({"model": imagenet_like(small())}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no checkpoint of the published AML"):
        load_published(tmp_path / "w.pth", **SMALL)


@pytest.mark.parametrize("everything", [True, False])
def test_hand_over(everything):
    old, new = small(classes=4), small()
    old.pool.p.data.fill_(2.0)
    old.neck.running_mean.fill_(5.0)
    hand_over(new, old.state_dict(), everything)
    assert torch.equal(new.layer4[0].conv3.weight, old.layer4[0].conv3.weight)
    assert float(new.pool.p) == (2.0 if everything else 3.0)
    assert float(new.neck.running_mean[0]) == (5.0 if everything else 0.0)
