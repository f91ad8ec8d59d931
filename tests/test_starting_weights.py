"""Weights to start from in the layouts of the projects that save them, by their own names, at small sizes; and the
families that are refused by name."""

import dataclasses
import re

import pytest
import torch
from weight_files import DEPTH, DIM, SMALL, backbone, packed, perturbed, published, renamed, same_embeddings, saved

from sdcl.errors import UserError
from sdcl.models import build_model, load_backbone, load_checkpoint, save_published_format

PLAIN = dataclasses.replace(SMALL, stem="patch")


def plain(grid=(14, 14)):
    """A ViT with plain patches, by timm's names."""
    entries = {k: v for k, v in backbone(grid).items() if not k.startswith("patch_embed.")}
    patches = {"patch_embed.proj.weight": torch.rand(DIM, 3, 16, 16), "patch_embed.proj.bias": torch.rand(DIM)}
    return entries | patches


def mae(entries):
    """Pre-training's file, decoder included."""
    decoder = {"mask_token": torch.rand(1, 1, 8), "decoder_pos_embed": torch.rand(1, 197, 8),
               "decoder_embed.weight": torch.rand(8, DIM), "decoder_blocks.0.norm1.weight": torch.rand(8),
               "decoder_blocks.0.attn.qkv.weight": torch.rand(24, 8), "decoder_norm.weight": torch.rand(8),
               "decoder_pred.weight": torch.rand(768, 8)}  # fmt: skip
    return {"model": entries | decoder, "epoch": 1600}


def with_parts(entries, apart):
    """PASS: three part tokens; before fine-tuning (apart) positions of the class, the parts and the patches by name."""
    parts = {f"part_token{i}": torch.rand(1, 1, DIM) for i in (1, 2, 3)}
    position = entries["pos_embed"]
    if not apart:
        between = torch.rand(1, 3, DIM)
        return entries | parts | {"pos_embed": torch.cat([position[:, :1], between, position[:, 1:]], 1)}
    parts |= {f"part{i}_pos": torch.rand(1, 1, DIM) for i in (1, 2, 3)}
    return entries | parts | {"cls_pos": position[:, :1], "pos_embed": position[:, 1:]}


CLASSIFIER = {"bottleneck.weight": torch.rand(DIM), "bottleneck.running_mean": torch.rand(DIM),
              "bottleneck.num_batches_tracked": torch.tensor(3), "classifier.weight": torch.rand(751, DIM),
              "base.fc.weight": torch.rand(1000, DIM), "base.sie_embed": torch.rand(15, 1, DIM)}  # fmt: skip
DINO_HEAD = {"head.mlp.0.weight": torch.rand(4, DIM), "head.last_layer.weight_v": torch.rand(7, 4)}

LAYOUTS = {
    # name: (stem, position grid, what the file holds)
    "timm, bare": ("patch", (14, 14), lambda b: b | {"head.weight": torch.rand(9, DIM), "head.bias": torch.rand(9)}),
    "MAE": ("patch", (14, 14), mae),
    "HAP": ("patch", (16, 8), lambda b: mae(b) | {"arch": "pose_mae_vit_base_patch16", "optimizer": {"state": {}}}),
    "HAP at 384 x 128": ("patch", (24, 8), mae),
    "DINO, full": (
        "patch",
        (14, 14),
        lambda b: {"student": renamed(b, "module.backbone."), "teacher": renamed(b, "backbone.") | DINO_HEAD},
    ),
    "PersonViT": (
        "patch",
        (16, 8),
        lambda b: {"teacher": renamed(b | {"masked_embed": torch.rand(1, DIM)}, "module.backbone.") | DINO_HEAD},
    ),
    "MSN": ("patch", (14, 14), lambda b: {"target_encoder": renamed(b | {"fc.fc1.weight": torch.rand(4)}, "module.")}),
    "DeepSpeed": ("patch", (14, 14), lambda b: {"module": b, "dp_world_size": 8}),
    "Lightning": ("patch", (14, 14), lambda b: {"state_dict": renamed(b, "model."), "epoch": 3}),
    "wrapped twice": ("patch", (14, 14), lambda b: {"state_dict": renamed(b, "module.model.")}),
    "CION": ("conv", (16, 8), lambda b: {"teacher": renamed(b, "module.backbone.") | renamed(DINO_HEAD, "module.")}),
    "TransReID-SSL, fine-tuned": ("conv", (16, 8), lambda b: renamed(b, "base.") | CLASSIFIER),
    "TransReID, fine-tuned, overlapping patches": ("patch", (21, 10), lambda b: renamed(b, "base.") | CLASSIFIER),
    "cluster contrast": (
        "conv",
        (16, 8),
        lambda b: {"state_dict": renamed(renamed(b, "base.") | CLASSIFIER, "module."), "epoch": 50},
    ),
    "PASS": ("conv", (16, 8), lambda b: with_parts(b, apart=True)),
    "PASS, whole training": (
        "conv",
        (16, 8),
        lambda b: {"teacher": renamed(with_parts(b, apart=True), "module.backbone.") | DINO_HEAD},
    ),
    "PASS, fine-tuned": ("conv", (24, 8), lambda b: renamed(with_parts(b, apart=False), "base.") | CLASSIFIER),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(tmp_path, layout):
    """Every tensor of the ViT arrives, the position embedding from its own grid; the copies are of what arrived."""
    stem, grid, make = LAYOUTS[layout]
    source = plain(grid) if stem == "patch" else backbone(grid)
    model = perturbed(dataclasses.replace(SMALL, stem=stem))
    report = load_backbone(model, saved(tmp_path, make(source)))
    assert report.loaded == sorted(source) and report.missing == [] and report.resized == ["pos_embed"]
    assert "{}x{}, resampled to 4x2".format(*grid) in report.source
    assert ("part tokens left out" in report.source) is ("PASS" in layout)
    assert not set(report.skipped) & set(source)
    state, last = model.state_dict(), f"blocks.{DEPTH - 1}."
    for name, tensor in source.items():
        if name != "pos_embed":
            ours = name.replace("patch_embed.", "stem_visible.").replace(last, "deep_head.block.")
            assert torch.equal(state["deep_head." + name if name.startswith("norm.") else ours], tensor), name
    assert torch.equal(state["pos_embed"][:, :1], source["pos_embed"][:, :1])
    cells = source["pos_embed"][0, 1:].reshape(*grid, DIM)
    assert state["pos_embed"][0, 1].sub(cells[: grid[0] // 4 + 1, : grid[1] // 2 + 1].mean((0, 1))).abs().max() < 0.05
    for a, b in (("stem_visible.", "stem_infrared."), ("deep_head.", "shallow_head.")):
        assert all(torch.equal(t, state[b + n.removeprefix(a)]) for n, t in state.items() if n.startswith(a))


def test_each_modality_trains_its_own_plain_patches(tmp_path):
    model = build_model(dataclasses.replace(PLAIN, pretrained=str(saved(tmp_path, plain((4, 2))))))
    visible, infrared = model.stem_visible.proj.weight, model.stem_infrared.proj.weight
    assert torch.equal(visible, infrared) and visible.data_ptr() != infrared.data_ptr()
    images = torch.randn(2, 3, 64, 32)
    tokens = model.stem_visible(images)
    by_hand = images[:, :, 16:32, :16].flatten(1) @ visible.flatten(1).t() + model.stem_visible.proj.bias
    torch.testing.assert_close(tokens[:, 2], by_hand, rtol=1e-4, atol=1e-4)  # row 1, column 0 of a grid of 4 x 2
    deep, shallow = model.train()(images, images)
    (deep.sum() + shallow.sum()).backward()
    assert visible.grad is not None and infrared.grad is not None


@pytest.mark.parametrize("kind", ["published", "own"])
def test_a_whole_trained_model_is_a_start(tmp_path, kind):
    """All of it, heads and their BatchNorms too."""
    path = saved(tmp_path, published() if kind == "published" else packed(perturbed()))
    model, same = build_model(dataclasses.replace(SMALL, pretrained=str(path))), build_model(SMALL)
    load_checkpoint(same, path)
    same_embeddings(model, same)
    assert not torch.equal(model.deep_head.bn.weight, torch.ones(DIM))


FAMILIES = {
    "CLIP": {"visual.class_embedding": (DIM,), "visual.transformer.resblocks.0.ln_1.weight": (DIM,),
             "visual.conv1.weight": (DIM, 3, 16, 16), "text_projection": (4, 4)},
    "CLIP ": {"vision_model.embeddings.class_embedding": (DIM,)},
    "CLIP  ": {"cls_token": (1, 1, DIM), "norm_pre.weight": (DIM,), "blocks.0.norm1.weight": (DIM,)},
    "DINOv2": {"cls_token": (1, 1, DIM), "mask_token": (1, DIM), "patch_embed.proj.weight": (DIM, 3, 14, 14),
               "blocks.0.ls1.gamma": (DIM,), "blocks.0.norm1.weight": (DIM,)},
    "DINOv3": {"cls_token": (1, 1, DIM), "storage_tokens": (1, 4, DIM), "rope_embed.periods": (16,),
               "blocks.0.ls1.gamma": (DIM,)},
    "Hugging Face Transformers": {"vit.embeddings.cls_token": (1, 1, DIM),
                                  "vit.encoder.layer.0.attention.attention.query.weight": (DIM, DIM)},
    "Swin Transformer": {"patch_embed.proj.weight": (DIM, 3, 4, 4),
                         "layers.0.blocks.0.attn.relative_position_bias_table": (169, 3)},
    "BEiT or EVA": {"cls_token": (1, 1, DIM), "blocks.0.attn.q_bias": (DIM,), "blocks.0.gamma_1": (DIM,)},
    "ResNet": {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 1, 1)},
    "MAE, fine-tuned": {"cls_token": (1, 1, DIM), "fc_norm.weight": (DIM,), "blocks.0.norm1.weight": (DIM,)},
    "I-JEPA": {"pos_embed": (1, 196, DIM), "patch_embed.proj.weight": (DIM, 3, 16, 16),
               "blocks.0.norm1.weight": (DIM,)},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_does_not_fit_is_named(tmp_path, family):
    path = saved(tmp_path, {name: torch.rand(shape) for name, shape in FAMILIES[family].items()})
    model = perturbed()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=f"seems to be of {re.escape(family.strip())}.*what works: ICS") as caught:
        load_backbone(model, path)
    assert "\n" not in str(caught.value) and "--checkpoint" not in str(caught.value)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_convolutional_stem_does_not_fit_plain_patches(tmp_path):
    with pytest.raises(UserError, match="leave out --stem patch"):
        load_backbone(build_model(PLAIN), saved(tmp_path, backbone()))


def test_plain_patches_are_not_written_in_the_published_format(tmp_path):
    with pytest.raises(UserError, match="convolutional stems alone"):
        save_published_format(build_model(PLAIN), tmp_path / "out.pth", 1, 0.5)
    assert not (tmp_path / "out.pth").exists()


def test_other_files_are_no_checkpoints(tmp_path):
    with pytest.raises(UserError, match=r"weights to start training from \(--pretrained\)"):
        load_checkpoint(build_model(SMALL), saved(tmp_path, renamed(backbone(), "base.") | CLASSIFIER))
