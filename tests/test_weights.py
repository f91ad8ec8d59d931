"""Backbone files of every kind: what is loaded from them, and what is refused."""

import argparse
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weight_files import DEPTH, DIM, HEAD, SMALL, backbone, packed, perturbed, renamed, saved

from sdcl.config import ModelConfig
from sdcl.errors import UserError
from sdcl.models import build_model, load_backbone, load_checkpoint

LAYOUTS = {
    "teacher": lambda b: {
        "student": renamed({k: torch.zeros_like(v) for k, v in b.items()}, "module.backbone."),
        "teacher": renamed(b, "backbone.") | HEAD,
        "epoch": 3,
    },
    "teacher.module": lambda b: {"teacher": renamed(b, "module.backbone.") | renamed(HEAD, "module.")},
    "model": lambda b: {"model": b | HEAD, "optimizer": {"lr": 0.1}},
    "state_dict": lambda b: {"state_dict": b | HEAD},
    "state_dict.module": lambda b: {"state_dict": renamed(b | HEAD, "module.")},
    "bare": lambda b: b | HEAD,
    # DINO keeps its command line, others a NumPy scalar
    "with plain extras": lambda b: {
        "teacher": renamed(b, "backbone.") | HEAD,
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(0.5),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(tmp_path, layout):
    source = backbone()
    model = build_model(SMALL)
    report = load_backbone(model, saved(tmp_path, LAYOUTS[layout](source)))
    assert report.loaded == sorted(source) and len(source) == 2 + 24 + 12 * DEPTH + 2
    assert (report.skipped, report.missing, report.resized) == (sorted(HEAD), [], [])
    state = model.state_dict()
    last = f"blocks.{DEPTH - 1}."
    for name, t in source.items():
        targets = [name]
        for old, new in (
            ("patch_embed.", ("stem_visible.", "stem_infrared.")),
            (last, ("deep_head.block.", "shallow_head.block.")),
            ("norm.", ("deep_head.norm.", "shallow_head.norm.")),
        ):
            if name.startswith(old):
                targets = [n + name.removeprefix(old) for n in new]
        for target in targets:
            assert torch.equal(state[target], t), (name, target)


def test_safetensors(tmp_path):
    source = backbone()
    save_file(source, tmp_path / "w.safetensors")
    model = build_model(SMALL)
    assert load_backbone(model, tmp_path / "w.safetensors").loaded == sorted(source)
    assert torch.equal(model.blocks[0].attn.qkv.weight, source["blocks.0.attn.qkv.weight"])


def test_build_model_takes_pretrained_weights_and_copies_after_loading(tmp_path):
    source = backbone()
    path = saved(tmp_path, source)
    model = build_model(ModelConfig(**{**vars(SMALL), "pretrained": str(path)}))
    assert torch.equal(model.stem_infrared.proj.weight, source["patch_embed.proj.weight"])
    assert model.stem_infrared.proj.weight.data_ptr() != model.stem_visible.proj.weight.data_ptr()


def test_embedding_normalisation_starts_afresh(tmp_path):
    model = perturbed()
    load_backbone(model, saved(tmp_path, backbone()))
    for head in (model.deep_head, model.shallow_head):
        for name, value in (
            ("weight", 1),
            ("bias", 0),
            ("running_mean", 0),
            ("running_var", 1),
            ("num_batches_tracked", 0),
        ):
            assert bool((getattr(head.bn, name) == value).all())
        assert not head.bn.bias.requires_grad


@pytest.mark.parametrize("grid", [(4, 2), (16, 8), (2, 1), (7, 7)])
def test_position_embedding_is_resampled(tmp_path, grid):
    """Bilinear by hand: the middle of a target cell in source coordinates, held at the border."""
    source = backbone(grid)
    model = build_model(SMALL)
    report = load_backbone(model, saved(tmp_path, source))
    assert report.resized == ([] if grid == (4, 2) else ["pos_embed"])
    assert torch.equal(model.pos_embed[:, 0], source["pos_embed"][:, 0])
    cells = source["pos_embed"][0, 1:].reshape(*grid, DIM).numpy()

    def places(target, own):
        x = np.clip((np.arange(target) + 0.5) * own / target - 0.5, 0, own - 1)
        low = np.floor(x).astype(int)
        return low, np.minimum(low + 1, own - 1), x - low

    want = np.zeros((4, 2, DIM))
    for r, (r0, r1, a) in enumerate(zip(*places(4, grid[0]), strict=True)):
        for c, (c0, c1, b) in enumerate(zip(*places(2, grid[1]), strict=True)):
            top = (1 - b) * cells[r0, c0] + b * cells[r0, c1]
            want[r, c] = (1 - a) * top + a * ((1 - b) * cells[r1, c0] + b * cells[r1, c1])
    np.testing.assert_allclose(model.pos_embed[0, 1:].detach().numpy(), want.reshape(-1, DIM), rtol=1e-5, atol=1e-6)


def test_plain_vit_keeps_the_random_stem(tmp_path):
    source = {k: v for k, v in backbone((14, 14)).items() if not k.startswith("patch_embed.")}
    file = (
        source
        | {"patch_embed.proj.weight": torch.ones(DIM, 3, 16, 16), "patch_embed.proj.bias": torch.ones(DIM)}
        | HEAD
    )
    model = build_model(SMALL)
    before = {k: v.clone() for k, v in model.stem_visible.state_dict().items()}
    with pytest.warns(UserWarning, match="random"):
        report = load_backbone(model, saved(tmp_path, file))
    assert report.loaded == sorted(source)
    assert report.missing == sorted(f"patch_embed.{name}" for name in before)
    assert report.skipped == sorted([*HEAD, "patch_embed.proj.weight", "patch_embed.proj.bias"])
    for stem in (model.stem_visible, model.stem_infrared):
        assert all(torch.equal(t, before[name]) for name, t in stem.state_dict().items())
    assert torch.equal(model.shallow_head.norm.weight, source["norm.weight"])


def without(entries, *names):
    return {k: v for k, v in entries.items() if k not in names}


BAD_BACKBONES = {
    "narrower": (lambda: backbone(dim=12), "width 12 and 3 blocks, expected width 24 and 3 blocks"),
    "deeper": (lambda: backbone(depth=4), "width 24 and 4 blocks, expected width 24 and 3 blocks"),
    "missing tensor": (lambda: without(backbone(), "blocks.1.mlp.fc1.bias"), "1 missing: blocks.1.mlp.fc1.bias"),
    "missing position": (lambda: without(backbone(), "pos_embed"), "1 missing: pos_embed"),
    "missing stem": (lambda: without(backbone(), *(k for k in backbone() if "patch" in k)), "24 missing: patch_embed"),
    "other MLP": (
        lambda: backbone() | {"blocks.0.mlp.fc1.weight": torch.zeros(48, DIM)},
        r"of another shape: blocks.0.*\(48, 24\)",
    ),
    "patches of 8": (
        lambda: backbone() | {"patch_embed.proj.weight": torch.zeros(DIM, 3, 8, 8)},
        "of another shape: patch_embed",
    ),
    "relative positions": (
        lambda: backbone() | {"blocks.0.attn.rel_pos": torch.ones(DIM)},
        "1 unexpected: blocks.0.attn.rel_pos",
    ),
    "not finite": (lambda: backbone() | {"norm.bias": torch.full((DIM,), torch.nan)}, "1 not finite: norm.bias"),
    "no grid": (lambda: backbone() | {"pos_embed": torch.zeros(1, 8, DIM)}, "no grid"),
    "flat position": (lambda: backbone() | {"pos_embed": torch.zeros(9, DIM)}, "no grid"),
    "nothing": (dict, "64 missing"),
    "other tensors": (lambda: {"conv1.weight": torch.zeros(3)}, "64 missing"),
    "checkpoint of another method": (
        lambda: packed(build_model(SMALL)) | {"method": "pic"},
        r"weights of another method \(pic\)",
    ),
    "other network's checkpoint": (
        lambda: packed(build_model(ModelConfig(**{**vars(SMALL), "dim": 12}))),
        "width 12 and 3 blocks, expected width 24 and 3 blocks",
    ),
    "list": (lambda: [torch.zeros(3)], "holds a list"),
}


@pytest.mark.parametrize("case", BAD_BACKBONES)
def test_bad_backbones_are_refused_and_change_nothing(tmp_path, case):
    make, message = BAD_BACKBONES[case]
    path = saved(tmp_path, make())
    model = perturbed()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_backbone(model, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


class Foreign:
    """Something that only a full unpickler would make."""

    def __reduce__(self):
        return print, ("code from the file was run",)


@pytest.mark.parametrize("load", [load_backbone, load_checkpoint])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(tmp_path, capsys, load, zipped):
    torch.save(backbone() | {"extra": Foreign()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="could run code"):
        load(build_model(SMALL), tmp_path / "w.pth")
    assert "code from the file" not in capsys.readouterr().out


@pytest.mark.parametrize("load", [load_backbone, load_checkpoint])
@pytest.mark.parametrize("damage", ["absent", "folder", "empty", "text", "picture", "truncated", "truncated, old form"])
def test_unreadable_files(tmp_path, load, damage):
    path = tmp_path / "w.pth"
    if damage == "folder":
        path.mkdir()
    elif damage.startswith("truncated"):
        torch.save(backbone(), path, _use_new_zipfile_serialization=damage == "truncated")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage != "absent":
        path.write_bytes({"empty": b"", "text": b"not weights\n", "picture": b"\x89PNG\r\n\x1a\n" + bytes(64)}[damage])
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load(build_model(SMALL), path)
    assert "\n" not in str(caught.value)


def test_old_numpy_scalars_are_read(tmp_path):
    """Files written under NumPy 1 name its modules otherwise."""
    path = tmp_path / "w.pth"
    torch.save({"state_dict": backbone(), "best": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert load_backbone(build_model(SMALL), path).missing == []


def test_report_table(tmp_path):
    report = load_backbone(build_model(SMALL), saved(tmp_path, backbone((16, 8)) | HEAD))
    lines = report.table().splitlines()
    assert "backbone" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["loaded", "64"],
        ["resized", "1"],
        ["skipped", "3"],
        ["missing", "0"],
    ]
    assert "pos_embed" in lines[2] and "head.weight" in lines[3]
