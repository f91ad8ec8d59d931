"""PIC's network: mean branches, shared statistics, what is trained, dtypes."""

import copy
from dataclasses import replace

import pytest
import torch

from sdcl.errors import UserError
from sdcl.frame.compiling import compile_modules
from sdcl.pic import PICModelConfig, PICNetwork, make_optimizer, train_step
from sdcl.pic.presets import PRESETS
from sdcl.pic.weights import published_names

SMALL = PICModelConfig(image_height=32, image_width=16, width=4, blocks=(1, 1, 1, 1))
CONFIG = replace(PRESETS["sysu"], model=SMALL, identities=2, instances=2, mean_momentum=0.9)
LABELS = torch.arange(2).repeat_interleave(2)


def _images(rows=4, seed=0, dtype=torch.float32):
    return torch.randn(rows, 3, 32, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _network(**changes) -> PICNetwork:
    torch.manual_seed(1)
    network = PICNetwork(replace(CONFIG, **changes), identities=2)
    if network.mean_branches is not None:  # unlike the trained ones, so that a move can be seen
        for p in network.mean_branches.parameters():
            p.data += 0.01 * torch.randn_like(p)
    return network


@pytest.fixture(scope="module")
def published() -> PICNetwork:
    with torch.device("meta"):
        return PICNetwork(PRESETS["sysu"], identities=395)


def test_the_published_network_has_the_published_size(published):
    trained = [p for p in published.parameters() if p.requires_grad]
    assert (len(trained), sum(p.numel() for p in trained)) == (233, 25_763_968)
    for branches in (published.branches, published.mean_branches):
        assert [sum(p.numel() for p in branches[m].parameters()) for m in branches] == [1_444_928] * 2
    assert len(set(published_names(published).values())) == 756 == len(published.state_dict())


def test_the_published_network_has_the_published_maps(published):
    images = torch.empty(2, 3, 288, 144, device="meta")
    maps = published.branches["visible"](images)
    assert maps.shape == (2, 512, 36, 18)
    assert published.shared(maps).shape == (2, 2048, 18, 9)


def test_outputs_belong_to_their_modality_whatever_the_numbers_of_rows():
    network = _network().train()
    visible, infrared = network(_images(3, 1), _images(5, 2))
    assert [tuple(x.shape) for x in visible] == [(3, 128), (3, 2), (3, 128), (3, 2)]
    assert [tuple(x.shape) for x in infrared] == [(5, 128), (5, 2), (5, 128), (5, 2)]
    alone = _network().eval()
    together, _ = alone(_images(3, 1), _images(5, 2))
    others, _ = alone(_images(3, 1), _images(2, 3))
    torch.testing.assert_close(together.features, others.features)  # in evaluation, rows do not see each other


def test_mean_branches_move_once_a_pass_in_every_weight():
    network = _network().train()
    before = copy.deepcopy(network.mean_branches)
    network(_images(), _images())
    for old, new, own in zip(
        before.parameters(), network.mean_branches.parameters(), network.branches.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * own)


def test_many_moves_are_one():
    one, many = _network(), _network()
    one.move_mean("infrared", 7)
    for _ in range(7):
        many.move_mean("infrared")
    for a, b in zip(one.mean_branches.parameters(), many.mean_branches.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    untouched = _network().mean_branches["visible"].parameters()
    assert all(map(torch.equal, one.mean_branches["visible"].parameters(), untouched))


def test_reading_embeddings_changes_nothing():
    network = _network().eval()
    before = copy.deepcopy(network.state_dict())
    found = network.embed(_images(), "visible")
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    for x in found.values():
        assert x.shape == (4, 128) and not x.requires_grad
        torch.testing.assert_close(x.norm(dim=1), torch.ones(4))


def test_embeddings_are_those_of_the_modalitys_mean_branch():
    network = _network().eval()
    maps = network.mean_branches["infrared"](_images())
    pooled = network.shared(maps).mean((2, 3))
    bottleneck = network.bottleneck
    normal = (pooled - bottleneck.running_mean) / (bottleneck.running_var + bottleneck.eps).sqrt() * bottleneck.weight
    found = network.embed(_images(), "infrared")
    torch.testing.assert_close(found["pooled"], pooled / pooled.norm(dim=1, keepdim=True))
    torch.testing.assert_close(found["normalised"], normal / normal.norm(dim=1, keepdim=True))
    assert not torch.allclose(found["pooled"], network.embed(_images(), "visible")["pooled"])


def test_shared_statistics_move_with_trained_rows_first_and_mean_rows_after():
    network = _network().train()
    visible, infrared = network(_images(4, 1), _images(4, 2))
    bn = network.bottleneck
    assert int(bn.num_batches_tracked) == 2 == int(network.shared.layer3[0].bn1.num_batches_tracked)
    first, second = (torch.cat([visible[k], infrared[k]]).detach().mean(0) for k in (0, 2))
    torch.testing.assert_close(bn.running_mean, 0.9 * 0.1 * first + 0.1 * second)
    branch = network.mean_branches["visible"].bn1, network.branches["visible"].bn1
    assert [int(b.num_batches_tracked) for b in branch] == [1, 1]
    assert not torch.equal(branch[0].running_mean, branch[1].running_mean)  # its own, not averaged


def test_nothing_flows_back_from_the_mean_rows_and_they_keep_no_graph():
    network = _network().train()
    visible, infrared = network(_images(), _images())
    for o in (visible, infrared):
        assert o.features.requires_grad and o.logits.requires_grad
        assert not o.mean_features.requires_grad and not o.mean_logits.requires_grad
    names = {n for n, p in network.named_parameters() if p.requires_grad}
    assert not any(n.startswith("mean_") or n == "bottleneck.bias" for n in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_computed_in_the_weights_dtype(dtype):
    network = _network().to(dtype).train()
    outputs = network(_images(dtype=dtype), _images(dtype=dtype))
    assert {x.dtype for o in outputs for x in o} == {dtype}
    assert {x.dtype for x in network.embed(_images(dtype=dtype), "visible").values()} == {dtype}


def test_bfloat16_is_for_convolutions_and_features_stay_float32():
    network = _network().train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(_images(), _images())
        embedded = network.embed(_images(), "visible")
    assert {x.dtype for o in outputs for x in o} | {x.dtype for x in embedded.values()} == {torch.float32}
    exact, rounded = (
        train_step(n, make_optimizer(n.parameters(), c), _images(4, 1), _images(4, 2), LABELS, c)
        for n, c in ((_network().train(), CONFIG), (_network().train(), replace(CONFIG, precision="bf16")))
    )
    assert float(rounded["total"]) == pytest.approx(float(exact["total"]), rel=0.1)


def test_without_mean_branches_the_trained_ones_are_tested():
    network = _network(mean_branches=False).train()
    visible, _ = network(_images(), _images())
    assert visible.mean_features is None and int(network.bottleneck.num_batches_tracked) == 1
    network.eval()
    pooled = network.shared(network.branches["visible"](_images())).mean((2, 3))
    found = network.embed(_images(), "visible")["pooled"]
    torch.testing.assert_close(found, pooled / pooled.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"blocks": (1, 1, 0, 1)}, "blocks is 0"),
        ({"image_width": 3}, "image-width is 3"),
    ],
)
def test_impossible_networks_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        PICModelConfig(**changes)


@pytest.mark.slow
def test_a_compiled_network_computes_the_same():
    """Its graphs, not their kernels: these take a compiler minutes on a CPU."""
    plain, compiled = _network().train(), _network().train()
    compile_modules(compiled.convolutional, torch.device("cpu"), backend="eager")
    for expected, found in zip(plain(_images(), _images()), compiled(_images(), _images()), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())
