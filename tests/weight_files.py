"""Small weight files of every kind, for tests."""

import torch

from sdcl.config import PRESETS, ModelConfig
from sdcl.frame.checkpoints import pack
from sdcl.models import build_model, published_state_dict

DIM, DEPTH = 24, 3
SMALL = ModelConfig(image_height=64, image_width=32, dim=DIM, depth=DEPTH, heads=2, drop_path=0.0)


def backbone(grid=(4, 2), dim=DIM, depth=DEPTH):
    """Random tensors of a ViT with convolutional stem, by their names in published files."""
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + grid[0] * grid[1], dim),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "patch_embed.conv.0.weight": (64, 3, 7, 7),
        "patch_embed.conv.3.weight": (64, 64, 3, 3),
        "patch_embed.conv.6.weight": (64, 64, 3, 3),
        "patch_embed.proj.weight": (dim, 64, 8, 8),
        "patch_embed.proj.bias": (dim,),
    }
    for name, width in (("1.BN", 32), ("4.BN", 32), ("7", 64)):
        shapes |= {f"patch_embed.conv.{name}.{k}": (width,) for k in ("weight", "bias", "running_mean", "running_var")}
    for name in ("1.IN", "4.IN"):
        shapes |= {f"patch_embed.conv.{name}.{k}": (32,) for k in ("weight", "bias")}
    for i in range(depth):
        for name, shape in {
            "norm1": (dim,),
            "norm2": (dim,),
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    tensors = {name: torch.rand(shape) * 0.1 for name, shape in shapes.items()}
    return tensors | {f"patch_embed.conv.{n}.num_batches_tracked": torch.tensor(7) for n in ("1.BN", "4.BN", "7")}


HEAD = {"head.weight": torch.zeros(10, DIM), "head_dist.bias": torch.zeros(10), "pre_logits.fc.bias": torch.zeros(3)}


def renamed(entries, prefix):
    return {prefix + name: t for name, t in entries.items()}


def saved(folder, content, name="weights.pth"):
    torch.save(content, folder / name)
    return folder / name


def same_embeddings(a, b):
    x = torch.randn(2, 3, a.config.image_height, a.config.image_width)
    for p, q in zip(a.eval()(x, -x), b.eval()(x, -x), strict=True):
        assert torch.equal(p, q)


def perturbed(config=SMALL):
    """A model all of whose tensors differ from each other and from initial values."""
    model = build_model(config)
    with torch.no_grad():
        for name, t in model.state_dict().items():
            t.add_(torch.rand_like(t) if t.is_floating_point() else len(name))
        for head in (model.deep_head, model.shallow_head):
            head.bn.bias.zero_()
    return model


def packed(model):
    whole = pack(model, PRESETS["demo"], method="sdcl", epoch=4, trial=0, fingerprint="f", metrics={"rank1": 0.25})
    return whole | {"config": {"model": vars(model.config)}}


def published(**changes):
    state = published_state_dict(perturbed()) | changes
    return {"state_dict": renamed({k: v for k, v in state.items() if v is not None}, "module.")}
