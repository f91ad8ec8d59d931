"""Checkpoints of the published implementation and of this project: loading, writing back, converting."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from weight_files import DEPTH, DIM, SMALL, backbone, packed, perturbed, published, renamed, same_embeddings, saved

from sdcl.config import ModelConfig
from sdcl.errors import UserError
from sdcl.models import build_model, load_checkpoint, published_names, published_state_dict, save_published_format

ROOT = Path(__file__).parent.parent


def test_twelve_blocks_give_241_published_names():
    model = build_model(ModelConfig(image_height=32, image_width=16, dim=8, heads=1))
    state = published_state_dict(model)
    assert len(state) == 241
    for prefix, count in {
        "base.patch_embed.": 24,
        "base.patch_embed2.": 24,
        "base.blocks.11.": 12,
        "b1.": 14,
        "b2.": 14,
        "bottleneck.": 5,
        "bottlenecks.": 5,
        "base.decoder_norm.": 5,
        "base.fc.": 2,
        "base.norm.": 2,
    }.items():
        assert sum(name.startswith(prefix) for name in state) == count, prefix
    names = published_names(model)
    assert names.keys() == model.state_dict().keys() and len(set(names.values())) == len(names)
    assert (
        names["shallow_head.bn.weight"] == "bottlenecks.weight"
        and names["stem_infrared.conv.1.IN.bias"] == "base.patch_embed2.conv.1.IN.bias"
    )


def test_published_format_there_and_back(tmp_path):
    model, other = perturbed(), build_model(SMALL)
    save_published_format(model, tmp_path / "p.pth", 17, 0.5)
    file = torch.load(tmp_path / "p.pth", weights_only=True)
    assert file.keys() == {"state_dict", "epoch", "best_mAP"} and (file["epoch"], file["best_mAP"]) == (17, 0.5)
    state = file["state_dict"]
    assert all(name.startswith("module.") for name in state)
    assert all(t.dtype == (torch.int64 if n.endswith("tracked") else torch.float32) for n, t in state.items())
    assert state["module.base.fc.weight"].shape == (1000, DIM) and state[
        "module.base.decoder_norm.running_var"
    ].shape == (1,)
    assert torch.equal(state["module.base.blocks.2.attn.qkv.bias"], model.deep_head.block.attn.qkv.bias)
    assert torch.equal(state["module.base.norm.bias"], model.deep_head.norm.bias)

    report = load_checkpoint(other, tmp_path / "p.pth")
    assert len(report.loaded) == len(model.state_dict()) and "published" in report.source
    assert report.skipped == sorted(
        n.removeprefix("module.")
        for n in state
        if n.startswith(("module.base.fc", "module.base.dec", "module.base.norm", "module.base.blocks.2"))
    )
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in other.state_dict().items())
    same_embeddings(model, other)
    assert list(tmp_path.iterdir()) == [tmp_path / "p.pth"]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_variants(tmp_path, prefix):
    """Without DataParallel's prefix, without the unused tensors, with a NumPy scalar: all say the same."""
    model, other = perturbed(), build_model(SMALL)
    state = {
        k: v
        for k, v in published_state_dict(model).items()
        if not k.startswith(("base.fc.", "base.norm.", "base.decoder_norm."))
    }
    load_checkpoint(
        other, saved(tmp_path, {"state_dict": renamed(state, prefix), "epoch": 3, "best_mAP": np.float64(0.5)})
    )
    same_embeddings(model, other)


def test_own_checkpoint(tmp_path):
    model, other = perturbed(), build_model(SMALL)
    report = load_checkpoint(other, saved(tmp_path, packed(model)))
    assert report.loaded == sorted(model.state_dict()) and "this project" in report.source
    same_embeddings(model, other)


BAD_CHECKPOINTS = {
    "backbone": (lambda: {"teacher": renamed(backbone(), "backbone.")}, "neither.*backbone weights"),
    "bare backbone": (backbone, "neither.*backbone weights"),
    "other tensors": (
        lambda: {"conv1.weight": torch.zeros(3)},
        "neither a checkpoint of this project nor of the published",
    ),
    "published, missing": (lambda: published(**{"b2.0.norm1.weight": None}), "1 missing: b2.0.norm1.weight"),
    "published, unexpected": (
        lambda: published(**{"classifier.weight": torch.zeros(2)}),
        "1 unexpected: classifier.weight",
    ),
    "published, shape": (
        lambda: published(**{"bottleneck.weight": torch.zeros(7)}),
        r"bottleneck.weight \(7,\) instead of \(24,\)",
    ),
    "published, NaN": (
        lambda: published(**{"bottleneck.weight": torch.full((DIM,), torch.nan)}),
        "not finite: bottleneck.weight",
    ),
    "published, deeper": (
        lambda: published(**{"base.blocks.3.norm1.weight": torch.zeros(DIM)}),
        "4 blocks, expected width 24 and 3",
    ),
    "own, other size": (
        lambda: packed(build_model(ModelConfig(32, 16, 12, 2, 2))),
        "width 12 and 2 blocks, expected width 24 and 3 blocks",
    ),
    "own, other images": (
        lambda: packed(build_model(ModelConfig(96, 48, DIM, DEPTH, 2))),
        r"pos_embed \(1, 19, 24\) instead of \(1, 9, 24\)",
    ),
    "own, empty": (lambda: packed(build_model(SMALL)) | {"model": {}}, "missing"),
    "own, no model": (lambda: {"format": "sdcl-1"}, "missing"),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused_and_change_nothing(tmp_path, case):
    make, message = BAD_CHECKPOINTS[case]
    path = saved(tmp_path, make())
    model = perturbed()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_checkpoint(model, path)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_saving_where_nothing_can_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        save_published_format(perturbed(), tmp_path / "absent" / "p.pth", 1, 0.1)


# -- scripts/convert_checkpoint.py --------------------------------------------------------------------------------


def convert(monkeypatch, *arguments):
    """The exit status of the script, run in this process."""
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"), run_name="__main__")
    return done.value.code


def test_conversion_from_published_and_back_is_exact(tmp_path, monkeypatch, capsys):
    a, b, c = (tmp_path / name for name in ("published.pth", "own.pth", "again.pth"))
    state = {
        n: t.float().uniform_(0, 9).to(t.dtype) for n, t in published_state_dict(perturbed()).items()
    }  # unused ones too
    torch.save({"state_dict": renamed(state, "module."), "epoch": 23, "best_mAP": np.float64(0.625)}, a)
    assert convert(monkeypatch, a, b, "--to", "sdcl", "--preset", "regdb", "--trial", "4") == 0
    own = torch.load(b, weights_only=True)
    assert (own["method"], own["epoch"], own["trial"], own["metrics"]["rank1"]) == ("sdcl", 22, 4, 0.625)
    assert own["config"]["model"] | {"heads": 2, "drop_path": 0.0} == vars(SMALL)
    model = build_model(SMALL)
    load_checkpoint(model, b)
    assert torch.equal(model.shallow_head.bn.weight, state["bottlenecks.weight"])
    assert convert(monkeypatch, b, c, "--to", "published") == 0
    again = torch.load(c, weights_only=True)
    assert (again["epoch"], again["best_mAP"]) == (23, 0.625)
    assert again["state_dict"].keys() == renamed(state, "module.").keys()
    for name, t in state.items():
        assert (
            torch.equal(again["state_dict"]["module." + name], t)
            and again["state_dict"]["module." + name].dtype == t.dtype
        )
    assert "24 epochs" not in capsys.readouterr().out


def test_conversion_of_an_own_checkpoint(tmp_path, monkeypatch, capsys):
    model, other = perturbed(), build_model(SMALL)
    source = saved(tmp_path, packed(model))
    assert convert(monkeypatch, source, tmp_path / "p.pth", "--to", "published") == 0
    assert "5 epochs done" in capsys.readouterr().out
    load_checkpoint(other, tmp_path / "p.pth")
    same_embeddings(model, other)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (lambda: packed(perturbed()), ["--to", "sdcl"], "already"),
        (published, ["--to", "published"], "not a checkpoint of this project"),
        (published, ["--to", "sdcl", "--preset", "regdb"], "--trial"),
        (lambda: {"state_dict": backbone()}, ["--to", "sdcl"], "base.cls_token"),
        (lambda: published(**{"base.pos_embed": torch.zeros(1, 8, DIM)}), ["--to", "sdcl"], "7 patches"),
    ],
)
def test_conversions_that_make_no_sense(tmp_path, monkeypatch, capsys, content, options, message):
    assert convert(monkeypatch, saved(tmp_path, content()), tmp_path / "out.pth", *options) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out.pth").exists()
