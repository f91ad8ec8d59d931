"""CLIP's weight files and published checkpoints: what is read, what is refused, what is written."""

import dataclasses
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cclnet_small import SMALL, clip_state, save_torchscript, small_model
from safetensors.torch import save_file

from sdcl.cclnet.model import CCLNetModel
from sdcl.cclnet.text import PREFIXES, SUFFIX
from sdcl.cclnet.torchscript import read_torchscript
from sdcl.cclnet.weights import (
    load_clip,
    load_published,
    load_published_image,
    published_names,
    published_state,
    read_clip,
    save_published,
)
from sdcl.errors import UserError


@pytest.fixture(scope="module")
def state():
    return clip_state(small_model())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_torchscript_reader_gives_torch_state_dict(state, tmp_path):
    save_torchscript(state, tmp_path / "clip.pt")
    assert same(read_torchscript(tmp_path / "clip.pt"), dict(torch.jit.load(tmp_path / "clip.pt").state_dict()))


def test_three_kinds_of_file_hold_the_same(state, tmp_path):
    half = {k: x.half() if x.ndim > 1 and x.dtype == torch.float32 else x for k, x in state.items()}
    save_torchscript(state, tmp_path / "clip.pt")
    torch.save(half, tmp_path / "dict.pth")
    save_file(half, tmp_path / "clip.safetensors")
    models = [CCLNetModel(SMALL) for _ in range(3)]
    for model, name in zip(models, ("clip.pt", "dict.pth", "clip.safetensors"), strict=True):
        load_clip(model, tmp_path / name)
    learned = {name for name in models[0].state_dict() if name.endswith("context")}
    first, *others = ({k: x for k, x in m.state_dict().items() if k not in learned} for m in models)
    assert all(same(first, other) for other in others)
    assert all(x.dtype in (torch.float32, torch.int64) for x in first.values())


def test_what_goes_where(state, tmp_path):
    torch.save({"state_dict": state}, tmp_path / "clip.pth")
    model = small_model(3, 2, seed=9)
    kept = {k: x.clone() for k, x in model.state_dict().items() if k.startswith("image.bn.") or k.endswith("context")}
    load_clip(model, tmp_path / "clip.pth")
    own = model.state_dict()
    for stem in ("stem_visible", "stem_infrared"):
        assert torch.equal(own[f"image.{stem}.conv2.weight"], state["visual.conv2.weight"])
    assert torch.equal(own["image.trunk.layer2.1.bn3.running_var"], state["visual.layer2.1.bn3.running_var"])
    block = "transformer.resblocks.1.mlp.c_fc.weight"
    assert torch.equal(own[f"language.text.{block}"], state[block])
    for modality, tokens in PREFIXES.items():
        words = state["token_embedding.weight"]
        assert torch.equal(own[f"language.prompts.{modality}.prefix"][0], words[list(tokens)])
        assert torch.equal(own[f"language.prompts.{modality}.suffix"][0, :3], words[list(SUFFIX)])
        assert torch.equal(own[f"language.prompts.{modality}.suffix"][0, 3:], words[0].expand(64, -1))
    assert all(torch.equal(own[k], x) for k, x in kept.items())


def test_position_embedding_is_resampled(state, tmp_path):
    positions = state["visual.attnpool.positional_embedding"]
    torch.save(state, tmp_path / "clip.pth")
    model = CCLNetModel(SMALL)
    load_clip(model, tmp_path / "clip.pth")
    got = model.image.attnpool.positional_embedding
    assert torch.equal(got[0], positions[0])
    grid = positions[1:].view(7, 7, -1)
    # 3 places down: the centre of the middle one is row 3 of 7; 2 across: centre of the first at 7/4 - 1/2 = 1.25
    want = 0.75 * grid[3, 1] + 0.25 * grid[3, 2]
    torch.testing.assert_close(got[1 + 1 * 2], want)
    all_places = F.interpolate(grid.permute(2, 0, 1)[None], (3, 2), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got[1:], all_places[0].flatten(1).t())


def test_image_network_alone(state, tmp_path):
    """A file without a text encoder serves where the text encoder is to be a random one."""
    torch.save({k: x for k, x in state.items() if k.startswith("visual.")}, tmp_path / "image.pth")
    model = small_model(2, 2)
    before = model.language.text.text_projection.clone()
    with pytest.raises(UserError, match="vocabulary"):
        load_clip(model, tmp_path / "image.pth")
    load_clip(model, tmp_path / "image.pth", text=False)
    assert torch.equal(model.image.stem_infrared.conv1.weight, state["visual.conv1.weight"])
    assert torch.equal(model.language.text.text_projection, before)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: {"visual.class_embedding": torch.zeros(8), "visual.conv1.weight": s["visual.conv1.weight"]}, "ViT"),
        (lambda s: {"conv1.weight": torch.zeros(1)}, "no CLIP image network"),
        (lambda s: {**s, "visual.layer3.1.conv1.weight": torch.zeros(1)}, "with 1, 2, 2, 1 blocks, but.* 1, 2, 1, 1"),
        (lambda s: {**s, "visual.conv1.weight": torch.zeros(8, 3, 3, 3)}, "of another shape: visual.conv1.weight"),
        (lambda s: {k: x for k, x in s.items() if k != "ln_final.bias"}, "1 missing: ln_final.bias"),
        (lambda s: {**s, "text_projection": s["text_projection"] * float("nan")}, "not finite: text_projection"),
        (lambda s: {**s, "token_embedding.weight": torch.zeros(99, 16)}, "vocabulary"),
    ],
)
def test_wrong_clip_file_is_named_and_changes_nothing(state, tmp_path, change, words):
    torch.save(change(state), tmp_path / "wrong.pth")
    model = small_model(seed=3)
    before = {k: x.clone() for k, x in model.state_dict().items()}
    with pytest.raises(UserError, match=words) as raised:
        load_clip(model, tmp_path / "wrong.pth")
    assert "\n" not in str(raised.value) and "wrong.pth" in str(raised.value)
    assert same(before, model.state_dict())


def test_missing_and_damaged_files(state, tmp_path):
    with pytest.raises(UserError, match="no CLIP weights at .*none.pt.*RN50.pt"):
        read_clip(tmp_path / "none.pt")
    save_torchscript(state, tmp_path / "clip.pt")
    content = bytearray((tmp_path / "clip.pt").read_bytes())
    start = content.index(b"\x80\x02")  # the pickle of the module
    content[start : start + 40] = os.urandom(40)
    (tmp_path / "clip.pt").write_bytes(content)
    with pytest.raises(UserError, match="damaged TorchScript archive"):
        read_clip(tmp_path / "clip.pt")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


def test_no_code_runs(state, tmp_path, monkeypatch):
    """Neither from a pickle that names a function, nor from one in a TorchScript archive."""
    import pickle
    import zipfile

    monkeypatch.chdir(tmp_path)
    torch.save({**state, "bomb": Bomb()}, "clip.pth")
    with pytest.raises(UserError, match="could run code"):
        read_clip("clip.pth")
    with zipfile.ZipFile("clip.pt", "w") as archive:
        archive.writestr("clip/data.pkl", pickle.dumps(Bomb(), protocol=2))
        archive.writestr("clip/constants.pkl", b"")
    with pytest.raises(UserError, match="no CLIP image network"):
        read_clip("clip.pt")
    assert not (tmp_path / "bomb").exists()


def write_published(model, path, **further):
    state = {k: x.clone() for k, x in published_state(model).items()}
    results = {"cmc": np.linspace(0.5, 0.9, 20), "mAP": np.float64(0.5), "mINP": np.float32(0.4), "epoch": 17}
    torch.save({"state_dict": state, **results, **further}, path)


def test_published_checkpoint_round_trip(tmp_path):
    model = small_model(5, 4)
    write_published(model, tmp_path / "published.pth")
    other = small_model(2, 1, seed=8)
    load_published(other, tmp_path / "published.pth")
    assert same(model.state_dict(), other.state_dict())
    image = small_model(seed=8).image
    load_published_image(image, tmp_path / "published.pth")
    assert same(model.image.state_dict(), image.state_dict())
    save_published(other, tmp_path / "again.pth", 3, np.linspace(0, 1, 20), 0.25, 0.125)
    again = torch.load(tmp_path / "again.pth", weights_only=False)
    assert same(again["state_dict"], published_state(model)) and again["epoch"] == 3
    assert isinstance(again["cmc"], np.ndarray) and again["mAP"] == 0.25
    # the copies that nothing reads share their numbers with those in use
    assert (tmp_path / "again.pth").stat().st_size < 0.7 * (tmp_path / "published.pth").stat().st_size


def test_names_of_the_whole_network():
    with torch.device("meta"):
        model = CCLNetModel(dataclasses.replace(SMALL, depths=(3, 4, 6, 3), text_depth=12))
    assert len(published_names(model)) == 516


def test_published_checkpoint_refuses(tmp_path):
    model = small_model(5, 4)
    write_published(model, tmp_path / "bomb.pth", extra=Bomb())
    with pytest.raises(UserError, match="could run code"):
        load_published(model, tmp_path / "bomb.pth")
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no checkpoint of the published CCLNet"):
        load_published(model, tmp_path / "other.pth")
    larger = small_model(5, 4, config=dataclasses.replace(SMALL, image_height=64))
    write_published(model, tmp_path / "small.pth")
    for load, part in ((load_published, larger), (load_published_image, larger.image)):
        with pytest.raises(UserError, match="another shape: base_resnet.base.attnpool.positional_embedding"):
            load(part, tmp_path / "small.pth")
