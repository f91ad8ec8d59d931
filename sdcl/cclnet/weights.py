"""CLIP's weight file, and checkpoints of the published implementation (CCLNet page, section 2)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdcl.cclnet.model import CCLNetModel, ImageNetwork
from sdcl.cclnet.text import CONTEXT_LENGTH, LEARNED, PREFIXES, SUFFIX
from sdcl.cclnet.torchscript import is_torchscript, read_torchscript
from sdcl.errors import UserError
from sdcl.files import write_atomically
from sdcl.tensor_files import fill, read_weights, tensors_in

__all__ = [
    "load_clip",
    "load_published",
    "load_published_image",
    "published_names",
    "published_state",
    "read_clip",
    "save_published",
]

CLIP_PREFIXES = {
    "image.stem_visible.": "visual.",
    "image.stem_infrared.": "visual.",
    "image.trunk.": "visual.",
    "image.attnpool.": "visual.attnpool.",
    "language.text.": "",
}
PUBLISHED_PREFIXES = {
    "image.stem_visible.": "visible_module.visible.",
    "image.stem_infrared.": "thermal_module.thermal.",
    "image.trunk.": "base_resnet.base.",
    "image.attnpool.": "base_resnet.base.attnpool.",
    "image.bn.": "bottleneck.",
    "language.text.": "text_encoder.",
}
PUBLISHED_PROMPTS = {
    f"language.prompts.{modality}.{ours}": f"prompt_learner.{theirs}_{short}"
    for modality, short in (("visible", "rgb"), ("infrared", "ir"))
    for ours, theirs in (("context", "cls_ctx"), ("prefix", "token_prefix"), ("suffix", "token_suffix"))
}


# -- CLIP ---------------------------------------------------------------------------------------------------------


def read_clip(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a CLIP file by OpenAI's names, as they are in it; no code in the file is run.

    path: OpenAI's TorchScript archive, or a dict of the same names (torch.save or safetensors).

    Raises:
        UserError: missing, damaged, or no CLIP ResNet with its text encoder; what it is instead is named.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no CLIP weights at {path}; this needs OpenAI's RN50.pt (docs/cclnet.md says where it is), or a dict of "
            "the same names"
        )
    if is_torchscript(path):
        try:
            tensors = read_torchscript(path)
        except Exception as error:  # a damaged archive raises almost anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            raise UserError(f"{path} is a damaged TorchScript archive ({reason}); fetch it again") from error
    else:
        data = read_weights(path)
        tensors = tensors_in(data.get("state_dict", data))
    if "visual.class_embedding" in tensors:
        raise UserError(f"{path} holds a CLIP vision transformer (ViT), but this needs CLIP's ResNet-50 (RN50)")
    if "visual.conv1.weight" not in tensors or "visual.layer1.0.conv1.weight" not in tensors:
        raise UserError(f"{path} holds no CLIP image network; this needs CLIP's ResNet-50 (RN50) by OpenAI's names")
    return tensors


def load_clip(model: CCLNetModel, path: str | Path, *, text: bool = True) -> None:
    """Fills a model from CLIP's weights: both stems and the trunk from the same file, in the model's dtype.

    The attention pooling's position embedding is resampled to the model's grid. Learned vectors and BatchNorm1d are
    left as they are.

    Args:
        text: whether the text encoder and the sentences' word embeddings come from the file as well.

    Raises:
        UserError: as `read_clip`; or another CLIP ResNet than the model's; the model stays as it was.
    """
    tensors = read_clip(path)
    depths = _depths(tensors)
    if depths != model.config.depths:
        raise UserError(
            f"{path} holds a CLIP ResNet with {', '.join(map(str, depths))} blocks, but this needs one with "
            f"{', '.join(map(str, model.config.depths))} (CLIP's RN50 has 3, 4, 6, 3)"
        )
    left = ("image.bn.", "language.prompts." if text else "language.")
    names = {ours: _renamed(ours, CLIP_PREFIXES) for ours in model.state_dict() if not ours.startswith(left)}
    source = dict(tensors)
    for theirs in names.values():
        if theirs.endswith("num_batches_tracked"):
            source.setdefault(theirs, torch.tensor(0))  # a counter that some files leave out and nothing reads
    positions = "visual.attnpool.positional_embedding"
    if positions in source:
        source[positions] = _resampled(source[positions], model.config.grid)
    if text:
        names |= {f"language.prompts.{m}.{part}": f"{part} of {m}" for m in PREFIXES for part in ("prefix", "suffix")}
        source |= _sentences(tensors, path)
    fill(model, source, names, path, [])


def _depths(tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """Blocks of each layer of a CLIP ResNet."""
    found = [re.match(r"visual\.layer(\d)\.(\d+)\.conv1\.weight", name) for name in tensors]
    blocks = [(int(match[1]), int(match[2])) for match in found if match]
    return tuple(sum(layer == i for layer, _ in blocks) for i in range(1, 5))


def _resampled(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embedding [1 + side², C] for another grid, [1 + h·w, C]: bilinear in float32, the first row kept.

    One that is no square, which is none of CLIP's, is returned as it is.
    """
    first, places = positions.float().split([1, len(positions) - 1])
    side = math.isqrt(len(places))
    if side * side != len(places) or (side, side) == grid:
        return positions
    square = places.t().reshape(1, -1, side, side)
    resized = F.interpolate(square, grid, mode="bilinear", align_corners=False)
    return torch.cat([first, resized.flatten(2)[0].t()])


def _sentences(tensors: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The embeddings of both sentences' fixed words, by made-up names.

    Raises:
        UserError: the file has no vocabulary, or one that is too small.
    """
    vocabulary = tensors.get("token_embedding.weight")
    if vocabulary is None or len(vocabulary) <= SUFFIX[-1]:
        raise UserError(f"{path} lacks CLIP's vocabulary (token_embedding.weight of 49408 rows)")
    padding = CONTEXT_LENGTH - len(PREFIXES["visible"]) - LEARNED - len(SUFFIX)
    suffix = vocabulary[[*SUFFIX, *[0] * padding]][None]
    return {
        name: value
        for m, tokens in PREFIXES.items()
        for name, value in ((f"prefix of {m}", vocabulary[list(tokens)][None]), (f"suffix of {m}", suffix))
    }


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    ours = next(p for p in prefixes if name.startswith(p))
    return prefixes[ours] + name.removeprefix(ours)


# -- published checkpoints ----------------------------------------------------------------------------------------


def published_names(model: CCLNetModel) -> dict[str, str]:
    """The model's tensors (parameters and buffers) → their names in a published checkpoint, 516 for RN50."""
    return {k: PUBLISHED_PROMPTS.get(k) or _renamed(k, PUBLISHED_PREFIXES) for k in model.state_dict()}


def published_state(model: CCLNetModel) -> dict[str, Tensor]:
    """All 1176 tensors, on the CPU, that the published implementation loads strictly.

    It keeps three whole image encoders and uses the stems of two and the trunk of the third; here the unused parts are
    the used ones again, so that a file holds each number once.
    """
    own = {name: x.detach().cpu() for name, x in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    for image_prefix, stem in (
        (PUBLISHED_PREFIXES["image.stem_infrared."], "image.stem_infrared."),
        (PUBLISHED_PREFIXES["image.stem_visible."], "image.stem_visible."),
        (PUBLISHED_PREFIXES["image.trunk."], "image.stem_visible."),
    ):
        prefixes = {stem: image_prefix, "image.trunk.": image_prefix}
        prefixes["image.attnpool."] = image_prefix + "attnpool."
        state |= {_renamed(k, prefixes): x for k, x in own.items() if k.startswith(tuple(prefixes))}
    return state | {theirs: own[ours] for ours, theirs in published_names(model).items()}


def load_published(model: CCLNetModel, path: str | Path) -> None:
    """Fills a model from a published checkpoint; its sentences become as many as the file's.

    Raises:
        UserError: the file cannot be read, or does not fit; all but the number of sentences then stays as it was.
    """
    state = _published_tensors(path)
    contexts = [state[PUBLISHED_PROMPTS[f"language.prompts.{m}.context"]] for m in PREFIXES]
    model.language.restart(*(len(context) for context in contexts))
    unexpected = sorted(state.keys() - published_state(model).keys())
    fill(model, state, published_names(model), path, unexpected)


def load_published_image(network: ImageNetwork, path: str | Path) -> None:
    """Fills the image network, which is all that a test needs, from a published checkpoint. Raises UserError as
    `load_published` does."""
    state = _published_tensors(path)
    names = {k: _renamed(f"image.{k}", PUBLISHED_PREFIXES) for k in network.state_dict()}
    fill(network, state, names, path, [])


def _published_tensors(path: str | Path) -> dict[str, Tensor]:
    state = tensors_in(read_weights(path).get("state_dict"), "module.")
    if not all(name in state and state[name].ndim == 3 for name in PUBLISHED_PROMPTS.values()):
        raise UserError(f"{path} is no checkpoint of the published CCLNet: it lacks state_dict, or prompts in it")
    return state


def save_published(
    model: CCLNetModel, path: str | Path, epoch: int, cmc: np.ndarray, mean_ap: float, mean_inp: float
) -> None:
    """Writes the model so that the published implementation loads it.

    Args:
        cmc: [20], matching rates of ranks 1 to 20. mean_ap, mean_inp: of the same test. epoch: from 1.
    """
    content = {
        "state_dict": published_state(model),
        "cmc": np.asarray(cmc),
        "mAP": np.float64(mean_ap),
        "mINP": np.float64(mean_inp),
        "epoch": epoch,
    }
    write_atomically(Path(path), lambda p: torch.save(content, p))
