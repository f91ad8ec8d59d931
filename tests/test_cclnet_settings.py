"""CCLNet's schedules, and what its optimisers move."""

import dataclasses
import math

import pytest
import torch
from cclnet_small import small_model

from sdcl.cclnet.losses import prompt_loss
from sdcl.cclnet.optimizers import contrast_optimizer, image_parameters, prompt_optimizer, set_learning_rate
from sdcl.cclnet.settings import ContrastConfig, PromptConfig
from sdcl.errors import UserError


def test_contrast_schedule():
    config = ContrastConfig()
    rates = [config.at(e).learning_rate / config.learning_rate for e in range(1, 121)]
    assert rates[0] == pytest.approx(0.01 * 0.9 + 0.1)
    assert rates[9:29] == [1.0] * 20
    assert rates[29:49] == pytest.approx([0.1] * 20) and rates[49:] == pytest.approx([0.01] * 71)
    assert [e for e in range(1, 121) if config.at(e).test] == list(range(5, 121, 5))
    assert [config.at(e).mix_share for e in (60, 61, 120)] == [1.0, 0.1, 0.1]


def test_prompt_schedule():
    config = PromptConfig()
    assert config.rate(1) == pytest.approx(7.8e-5)
    assert config.rate(5) == pytest.approx(1e-6 + 3.49e-4 * (1 + math.cos(math.pi / 12)) / 2)
    assert config.rate(60) == pytest.approx(1e-6)


def test_impossible_settings():
    for wrong in ({"epochs": 0}, {"eps": 1.5}, {"identities": 0}, {"mix_share": 2.0}, {"smoothing": 1.0}, {"k1": 0},
                  {"temperature": 0.0}, {"test_every": 0}, {"warmup_epochs": 0}):  # fmt: skip
        with pytest.raises(UserError, match=next(iter(wrong)).split("_")[0]):
            ContrastConfig(**wrong)
    with pytest.raises(UserError, match="batches of 0"):
        PromptConfig(batch=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ContrastConfig().epochs = 3  # type: ignore[misc]


def test_biases_learn_twice_as_fast_and_the_text_encoder_not_at_all():
    model = small_model(3, 2)
    optimizer = contrast_optimizer(model, ContrastConfig())
    set_learning_rate(optimizer, 0.5)
    names = {id(p): k for k, p in model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates == {k: 1.0 if k.endswith("bias") else 0.5 for k in rates}
    assert rates.keys() == image_parameters(model).keys()
    assert not any(k.startswith(("text.", "prompts.")) or k == "bn.bias" for k in rates)
    assert {"bn.weight", "attnpool.k_proj.bias", "stem_infrared.bn1.bias"} <= rates.keys()


def test_attention_pooling_rests_where_no_projection_is_wanted():
    model = small_model().train()
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = contrast_optimizer(model, ContrastConfig())
    x = torch.randn(4, 3, 48, 32)
    model(x, x).features.pow(3).sum().backward()
    optimizer.step()
    moved = {k for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {k for k in image_parameters(model) if not k.startswith("attnpool.")}


def test_prompt_optimizer_moves_all_sentences():
    """Rows of clusters that a batch lacks move too: decay at once, and what momentum remembers later."""
    model = small_model(4, 3)
    optimizer = prompt_optimizer(model, PromptConfig())
    images = {m: torch.randn(6, 12) for m in ("visible", "infrared")}
    labels = {"visible": torch.tensor([0, 1, 0, 1, 0, 1]), "infrared": torch.tensor([0, 2, 2, 0, 0, 0])}
    sum(prompt_loss(images[m], model.texts(labels[m], m), labels[m]) for m in images).backward()
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer.step()
    moved = {k for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {"prompts.visible.context", "prompts.infrared.context"}
    assert (model.sentences("visible").context != before["prompts.visible.context"]).flatten(1).any(1).all()
