"""CCLNet's schedules, and what its optimisers move."""

import dataclasses
import math

import pytest
import torch
from cclnet_small import small_model

from sdcl.cclnet.losses import prompt_loss
from sdcl.cclnet.optimizers import contrast_optimizer, prompt_optimizer, set_learning_rate
from sdcl.cclnet.presets import PRESETS
from sdcl.cclnet.settings import Config
from sdcl.errors import UserError

SYSU = PRESETS["sysu"]


def test_stages_follow_each_other():
    assert [SYSU.epochs_of(s) for s in (0, 1, 2)] == [range(120), range(120, 180), range(180, 300)]
    assert SYSU.epochs == 300
    places = [(SYSU.at(e).stage, SYSU.at(e).number) for e in range(300)]
    assert places == [(s, n) for s, epochs in ((0, 120), (1, 60), (2, 120)) for n in range(1, epochs + 1)]
    assert [SYSU.stage_name(e) for e in (0, 120, 299)] == ["stage 0", "stage 1", "stage 2"]


@pytest.mark.parametrize("stage", [0, 2])
def test_contrast_schedule(stage):
    epochs = [SYSU.at(e) for e in SYSU.epochs_of(stage)]
    rates = [e.learning_rate / SYSU.learning_rate for e in epochs]
    assert rates[0] == pytest.approx(0.01 * 0.9 + 0.1)
    assert rates[9:29] == [1.0] * 20
    assert rates[29:49] == pytest.approx([0.1] * 20) and rates[49:] == pytest.approx([0.01] * 71)
    assert [e.number for e in epochs if e.test] == list(range(5, 121, 5))
    assert [epochs[n - 1].mix_share for n in (60, 61, 120)] == [1.0, 0.1, 0.1]


def test_prompt_schedule():
    epochs = [SYSU.at(e) for e in SYSU.epochs_of(1)]
    assert epochs[0].learning_rate == pytest.approx(7.8e-5)
    assert epochs[4].learning_rate == pytest.approx(1e-6 + 3.49e-4 * (1 + math.cos(math.pi / 12)) / 2)
    assert epochs[59].learning_rate == pytest.approx(1e-6)
    assert [e.number for e in epochs if e.test] == [60]


def test_the_last_epoch_of_a_stage_is_tested():
    config = dataclasses.replace(SYSU, contrast_epochs=7, prompt_epochs=2)
    assert [e for e in range(16) if config.at(e).test] == [4, 6, 8, 13, 15]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"contrast_epochs": 0}, "contrast-epochs is 0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"mix_share": 2.0}, "mix-share"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"temperature": 0.0}, "temperature"),
        ({"stage": (0, 2)}, "--stage 0 2: give one of 0, 1, 2, or several in a row"),
        ({"stage": ()}, "several in a row"),
        ({"identities": 1, "instances": 1}, "batch of one image"),
    ],
)
def test_impossible_settings(wrong, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(SYSU, **wrong)


def test_settings_survive_json():
    for config in PRESETS.values():
        assert Config.from_json(config.to_json()) == config


def test_biases_learn_twice_as_fast_and_the_last_normalisation_keeps_its_own():
    network = small_model().image
    optimizer = contrast_optimizer(network, SYSU)
    set_learning_rate(optimizer, 0.5)
    names = {id(p): k for k, p in network.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates == {k: 1.0 if k.endswith("bias") else 0.5 for k in names.values() if k != "bn.bias"}


def test_attention_pooling_rests_where_no_projection_is_wanted():
    network = small_model().image.train()
    before = {k: p.detach().clone() for k, p in network.named_parameters()}
    optimizer = contrast_optimizer(network, SYSU)
    x = torch.randn(4, 3, 48, 32)
    network(x, x).features.pow(3).sum().backward()
    optimizer.step()
    moved = {k for k, p in network.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {k for k in before if not k.startswith("attnpool.") and k != "bn.bias"}


def test_prompt_optimizer_moves_all_sentences():
    """Rows of clusters that a batch lacks move too: decay at once, and what momentum remembers later."""
    language = small_model(4, 3).language
    optimizer = prompt_optimizer(language, SYSU)
    images = {m: torch.randn(6, 12) for m in ("visible", "infrared")}
    labels = {"visible": torch.tensor([0, 1, 0, 1, 0, 1]), "infrared": torch.tensor([0, 2, 2, 0, 0, 0])}
    sum(prompt_loss(images[m], language.texts(labels[m], m), labels[m]) for m in images).backward()
    before = {k: p.detach().clone() for k, p in language.named_parameters()}
    optimizer.step()
    moved = {k for k, p in language.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {"prompts.visible.context", "prompts.infrared.context"}
    assert (language.sentences("visible").context != before["prompts.visible.context"]).flatten(1).any(1).all()
