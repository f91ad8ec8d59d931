"""CCLNet's network against references written out plainly."""

import pytest
import torch
import torch.nn.functional as F
from cclnet_small import SMALL, small_model

from sdcl.cclnet.network import AttentionPool, generalised_mean
from sdcl.cclnet.settings import ClipConfig
from sdcl.cclnet.text import CONTEXT_LENGTH
from sdcl.errors import UserError


def images(n, config=SMALL):
    return torch.randn(n, 3, config.image_height, config.image_width)


def test_generalised_mean_of_known_places():
    x = torch.tensor([1.0, 2.0, 0.0, 3.0]).view(1, 1, 2, 2)
    assert generalised_mean(x).item() == pytest.approx((36 / 4) ** (1 / 3))
    assert generalised_mean(torch.full((2, 3, 4, 5), 1.7)) == pytest.approx(torch.full((2, 3), 1.7).numpy())


def test_attention_pool_is_the_first_row_of_torch_multi_head_attention():
    pool = AttentionPool(128, (3, 2), 12)
    torch.nn.init.normal_(pool.positional_embedding)
    x = torch.randn(2, 128, 3, 2)
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    want, _ = F.multi_head_attention_forward(
        tokens, tokens, tokens, 128, 2, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    torch.testing.assert_close(pool(x), want[0], rtol=1e-5, atol=1e-6)


def test_last_layer_keeps_its_size():
    network = small_model().image
    assert network.trunk(network.stem_visible(images(1))).shape == (1, 128, 3, 2)
    assert ClipConfig().grid == (18, 9) and ClipConfig().dim == 2048


def test_evaluation_gives_unit_features_of_each_modality():
    network = small_model().image.eval()
    x = images(3)
    visible, infrared = network(visible=x).features, network(infrared=x).features
    torch.testing.assert_close(visible.norm(dim=1), torch.ones(3))
    assert torch.equal(visible, infrared)  # both stems start from the same weights
    with torch.no_grad():
        network.stem_infrared.conv1.weight.mul_(-1)
    assert torch.equal(network(visible=x).features, visible)
    assert not torch.allclose(network(infrared=x).features, visible)
    both = network(visible=x, infrared=x)
    assert both.projections is None
    torch.testing.assert_close(both.features, torch.cat([visible, network(infrared=x).features]))


def test_training_shares_batch_statistics_over_both_modalities():
    network = small_model().image.train()
    out = network(visible=images(5), infrared=images(3) * 2, project=True)
    assert out.projections.shape == (8, 12)
    # BatchNorm1d with its bias of 0: the mean of all 8 rows is 0, that of a modality is not
    torch.testing.assert_close(out.features.mean(0), torch.zeros(128), rtol=0, atol=1e-5)
    assert out.features[:5].mean(0).abs().max() > 0.05
    assert not network.bn.bias.requires_grad


def test_features_do_not_depend_on_whether_projections_are_wanted():
    network, x = small_model().image.train(), images(4)
    assert torch.equal(network(x, x).features, network(x, x, project=True).features)


def test_texts_are_those_of_the_padded_sentence():
    """The 64 places after the end token change nothing, as attention is causal."""
    language = small_model(3, 2).language
    prompts = language.sentences("visible")
    labels = torch.tensor([2, 0, 2])
    learned = prompts.context[labels]
    whole = torch.cat([prompts.prefix.expand(3, -1, -1), learned, prompts.suffix.expand(3, -1, -1)], 1)
    assert whole.shape[1] == CONTEXT_LENGTH
    x = language.text.transformer(whole + language.text.positional_embedding)
    want = language.text.ln_final(x[:, 12]) @ language.text.text_projection
    got = language.texts(labels, "visible")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(got[0], got[2])
    # a sentence does not see the learned vectors of another cluster
    got[1].sum().backward()
    assert prompts.context.grad[0].abs().max() > 0 and prompts.context.grad[1:].abs().max() == 0
    assert all(p.grad is None for p in language.text.parameters())


def test_fresh_prompts():
    language = small_model().language
    language.restart(200, 3)
    assert language.sentences("visible").context.shape == (200, 4, 16)
    assert language.sentences("visible").context.std().item() == pytest.approx(0.02, rel=0.05)
    assert len(language.sentences("infrared").context) == 3


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"image_height": 100}, "multiple of 16, such as 96"),
        ({"width": 3}, "width is 3"),
        ({"depths": (3, 4, 6)}, "four layers"),
        ({"text_heads": 7}, "text-heads"),
        ({"projection": 0}, "projection is 0: --projection takes a number at least 1"),
    ],
)
def test_impossible_sizes(wrong, words):
    with pytest.raises(UserError, match=words):
        ClipConfig(**wrong)


def test_wrong_images():
    with pytest.raises(ValueError, match="takes"):
        small_model().image(visible=torch.zeros(1, 3, 32, 48))
    with pytest.raises(ValueError, match="neither"):
        small_model().image()
