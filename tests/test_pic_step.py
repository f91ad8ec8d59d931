"""A step of PIC against one written out by hand, its views, and its settings."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdcl.data.transforms import MEAN, STD
from sdcl.errors import UserError
from sdcl.pic import PICModelConfig, PICNetwork, make_optimizer, pic_losses, train_step
from sdcl.pic.presets import PRESETS
from sdcl.pic.views import training_view

SMALL = PICModelConfig(image_height=32, image_width=16, width=4, blocks=(1, 1, 1, 1))
PUBLISHED = PRESETS["sysu"]
CONFIG = replace(PUBLISHED, model=SMALL, identities=3, instances=2)
LABELS = torch.arange(3).repeat_interleave(2)


def _start():
    torch.manual_seed(0)
    network = PICNetwork(CONFIG, identities=3).double().train()
    images = [torch.randn(6, 3, 32, 16, dtype=torch.float64) for _ in range(2)]
    return network, images


def test_a_step_is_forward_backward_and_adam_with_l2():
    network, images = _start()
    by_hand = copy.deepcopy(network)
    losses = train_step(network, make_optimizer(network.parameters(), CONFIG), *images, LABELS, CONFIG)

    expected = pic_losses(*by_hand(*images), LABELS, CONFIG)
    expected["total"].backward()
    for name, p in by_hand.named_parameters():
        if p.requires_grad:
            g = p.grad + 5e-4 * p.detach()
            p.data -= 3.5e-4 * g / (g.abs() + 1e-8)  # Adam's first step
            torch.testing.assert_close(network.get_parameter(name), p, msg=name)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name].detach())
        assert not value.requires_grad


def test_steps_learn_a_batch_by_heart():
    network, images = _start()
    optimizer = make_optimizer(network.parameters(), replace(PUBLISHED, learning_rate=3e-3))
    totals = [float(train_step(network, optimizer, *images, LABELS, CONFIG)["identity"]) for _ in range(25)]
    assert totals[-1] < 0.3 * totals[0]


def test_mean_branches_follow_what_the_optimiser_changed_one_step_later():
    network, images = _start()
    optimizer = make_optimizer(network.parameters(), replace(PUBLISHED, learning_rate=0.1))
    before = copy.deepcopy(network.mean_branches)
    train_step(network, optimizer, *images, LABELS, CONFIG)
    for old, new in zip(before.parameters(), network.mean_branches.parameters(), strict=True):
        torch.testing.assert_close(new, old)  # trained and mean branches were equal during the first step
    train_step(network, optimizer, *images, LABELS, CONFIG)
    assert not torch.allclose(network.mean_branches["visible"].conv1.weight, before["visible"].conv1.weight)


def test_training_views_are_crops_of_the_image_in_a_black_frame():
    image = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    view = training_view(32, 16, 3)
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    padded = torch.zeros(3, 38, 22)
    padded[:, 3:-3, 3:-3] = torch.from_numpy(image).permute(2, 0, 1) / 255
    found = set()
    for _ in range(60):
        pixels = view(image) * std + mean
        for mirrored in (False, True):
            x = pixels.flip(2) if mirrored else pixels
            at = [(i, j, mirrored) for i in range(7) for j in range(7)
                  if torch.allclose(padded[:, i : i + 32, j : j + 16], x, atol=1e-5)]  # fmt: skip
            found |= set(at[:1])
    assert len(found) > 25 and {m for _, _, m in found} == {False, True}


def test_tests_follow_even_epochs_and_the_last():
    config = PUBLISHED
    assert [e for e in range(81) if config.test_follows(e)] == list(range(0, 81, 2))
    assert [e for e in range(6) if replace(PUBLISHED, epochs=6, test_every=4).test_follows(e)] == [0, 4, 5]


@pytest.mark.parametrize(
    "changes", [{"identities": 1}, {"instances": 0}, {"mean_momentum": 1.5}, {"epochs": 0}, {"test_every": 0}]
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes)).replace("_", "-") + " is"):
        replace(PUBLISHED, **changes)
