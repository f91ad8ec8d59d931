"""What the shared programs (test, report, compare, export, ablation) ask about a method, and how they find it.

A method called `x` is a program `train_x.py` beside `test_sdcl.py` that holds its description as `METHOD`. There is no
list of methods anywhere: a checkpoint and a run's config.json name theirs, and `method_named` imports that program.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sdcl.errors import UserError
from sdcl.files import read_json
from sdcl.frame.checkpoints import load_weights, own_checkpoint
from sdcl.frame.embedding import Embed, with_mirror_image
from sdcl.frame.published import Published
from sdcl.settings import RunSettings

if TYPE_CHECKING:
    from sdcl.report.markup import Section
    from sdcl.report.page import ReportedRun

__all__ = ["Method", "dot_products", "load_network", "method_named", "method_of", "read_settings"]

Interpolation = Literal["bilinear", "bicubic", "lanczos"]


def dot_products(query: Tensor, gallery: Tensor) -> Tensor:
    """Similarities [Q, G] of features [Q, d] and [G, d]."""
    return query @ gallery.t()


@dataclass(frozen=True)
class Method:
    """A method as the shared programs see it. Modalities are "visible" and "infrared"."""

    name: str
    """As in `train_<name>.py`, checkpoints and config.json."""
    title: str
    """As in tables and pages."""
    presets: Mapping[str, Any]
    """Settings (of the method's own class) by the name that the command line gives them."""
    build: Callable[[Any], nn.Module]
    """Settings to the network, on the CPU; its weights are about to be filled, so no file is read."""
    embed: Embed
    """Network in evaluation mode, normalised images [B, 3, H, W] on its device and their modality to the embeddings of
    each level, name → [B, d], un-normalised unless the method says otherwise."""
    features: Callable[[dict[str, Tensor], Any, bool], dict[str, Tensor]]
    """Levels [N, d] of a modality, settings, and whether it is the final test, to what a test compares: kind of
    features → [N, d]. The first kind gives the modes' own rows of the table and selects the best epoch; a further one
    called `k` gives rows `<mode>_k`."""
    mirror: bool = False
    """Whether an embedding is the mean of an image's and its mirror image's."""
    similarity: Callable[[Tensor, Tensor], Tensor] = dot_products
    """Features of query [Q, d] and gallery [G, d] to similarities [Q, G]."""
    interpolation: Interpolation = "lanczos"
    """How test images are resized."""
    load_other: Callable[[Any, Path], object] | None = None
    """Fills the network from a weight file of another format, such as the published program's; UserError where it is
    none. None: no other format is known."""
    supervised: bool = False
    """Whether it trains on identities."""
    terms: tuple[str, ...] = ()
    """How the names of loss terms in log.jsonl begin."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Further tables in results.json → their names in printed tables, such as "stage1" → "stage 1 alone"."""
    published: Published | None = None
    """Published results, and curves where there are some."""
    sections: Callable[[ReportedRun], Iterable[Section]] | None = None
    """Its own sections of a run's report."""
    ablation: Mapping[str, tuple[str, list[str]]] = field(default_factory=dict)
    """Rows of its ablation: folder → name in the table, and the options that leave the later parts out."""
    next_labels: Callable[[Path, Path | None], tuple[dict[str, Tensor], dict[str, Any], str]] | None = None
    """Run folder and data folder (None: where it found the data) to the pseudo-labels that its next epoch would train
    with (name → [N] int64), the training records by modality, and a sentence about them. None: it has none."""

    @property
    def embedding(self) -> Embed:
        """`embed`, averaged with the mirror image where the method does so: what clustering and tests take."""
        return with_mirror_image(self.embed) if self.mirror else self.embed

    @property
    def settings(self) -> type[RunSettings]:
        """The class of its settings."""
        return type(next(iter(self.presets.values())))


def method_named(name: str) -> Method:
    """The description in `train_<name>.py`, which lies beside the test program or in the working directory.

    Raises:
        UserError: no such program, or it holds no `METHOD` of this name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"'{name}' is not a method's name: small letters, digits and _ only")
    program = f"train_{name}"
    for place in (str(Path.cwd()), str(Path(__file__).resolve().parents[2])):
        if place not in sys.path:
            sys.path.append(place)
    try:
        # A program that is running is the module __main__: taken as it is, its classes are not made a second time.
        running = sys.modules.get("__main__")
        is_running = Path(getattr(running, "__file__", None) or "").name == f"{program}.py"
        module: Any = running if is_running else importlib.import_module(program)
    except ModuleNotFoundError as error:
        if error.name != program:
            raise
        raise UserError(f"the method is '{name}', but there is no {program}.py here: start from its folder") from None
    found = getattr(module, "METHOD", None)
    if not isinstance(found, Method) or found.name != name:
        raise UserError(f"{program}.py describes no method '{name}': it needs a METHOD of that name")
    return found


def method_of(path: Path, otherwise: str = "sdcl") -> Method:
    """The method of a checkpoint; `otherwise` names it for files of other formats and where there is no such file."""
    checkpoint = own_checkpoint(path) if path.is_file() else None
    return method_named(checkpoint["method"] if checkpoint else otherwise)


def read_settings(file: Path) -> tuple[Method, RunSettings]:
    """The method and the settings in a run's config.json.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    settings = read_json(file)
    name = settings.pop("method", "sdcl")  # files of version 0.1 do not name it
    if not isinstance(name, str):
        raise UserError(f"{file} is damaged: its method is {name!r}. Restore it, or start afresh in another folder")
    try:
        method = method_named(name)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return method, method.settings.from_json(settings, file)


def load_network(method: Method, path: Path, settings: Any, device: torch.device | str = "cpu") -> nn.Module:
    """The network of these settings with a checkpoint's weights, this project's or one of another format.

    Raises:
        UserError: the file is no such checkpoint, or of another architecture.
    """
    network = method.build(settings)
    checkpoint = own_checkpoint(path)
    if checkpoint is not None:
        load_weights(network, checkpoint, path)
    elif method.load_other is not None:
        method.load_other(network, path)
    else:
        raise UserError(f"{path} is not a checkpoint of this project, and {method.title} reads no other")
    return network.to(device)
