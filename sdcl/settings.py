"""What the settings of every method have in common: fields that the shared rooms read, ranges, saving and comparing.

A method's settings are a frozen dataclass that inherits from `RunSettings`; each field is an option of its command
line, the field's docstring is the option's help, its `Range` is checked here, NaN included.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from sdcl.errors import UserError

__all__ = [
    "Count", "NonNegative", "Positive", "Range", "RunSettings", "Share", "check_ranges", "from_plain", "option",
    "ranges_of",
]  # fmt: skip

S = TypeVar("S", bound="RunSettings")


@dataclass(frozen=True)
class Range:
    """The values that a number may have: low … high, the ends included unless `above` or `below` leave them out.

    NaN and the infinite are outside of every range.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """The number must be larger than `low`, not equal to it."""
    below: bool = False
    """The number must be smaller than `high`, not equal to it."""

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.low if self.above else value >= self.low
        low_enough = value < self.high if self.below else value <= self.high
        finite = isinstance(value, int) or math.isfinite(value)  # an int may be too large for a float
        return finite and high_enough and low_enough

    def __str__(self) -> str:
        low, high = "above" if self.above else "at least", "below" if self.below else "at most"
        parts = [f"{low} {self.low:g}"] * (self.low > -math.inf) + [f"{high} {self.high:g}"] * (self.high < math.inf)
        return " and ".join(parts) or "that is finite"


# Bounds that are far beyond any use keep a slip of the keyboard from filling the memory.
Count = Annotated[int, Range(1, 10**7)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, 1e6, above=True)]
NonNegative = Annotated[float, Range(0, 1e6)]


def spare_cores() -> int:
    """Processor cores that this process may use beside its own; several processes of one machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def option(name: str) -> str:
    """A field's option on the command line: `image_cache` → `--image-cache`."""
    return f"--{name.replace('_', '-')}"


def check_ranges(settings: Any) -> None:
    """Raises UserError for the first field of a dataclass instance, or of one inside it, whose value is outside of its
    `Range`.

    A field is given its range by its type, as in `eps: Annotated[float, Range(0, 1)]`; of a tuple every number is
    looked at, what is no number (None, "auto") is left alone.
    """
    kind: Any = type(settings)
    for name, found in ranges_of(kind).items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and number not in found:
                raise UserError(f"{name.replace('_', '-')} is {number}: {option(name)} takes a number {found}")
    for part in dataclasses.fields(kind):
        inside = getattr(settings, part.name)
        if dataclasses.is_dataclass(inside):
            check_ranges(inside)


@cache
def ranges_of(kind: type) -> dict[str, Range]:
    """Field → range, for the fields that have one (also inside `X | None` and `tuple[X, …]`)."""

    def ranges_in(hint: Any) -> list[Range]:
        inside = [found for part in get_args(hint) for found in ranges_in(part)]
        return [m for m in hint.__metadata__ if isinstance(m, Range)] if get_origin(hint) is Annotated else inside

    hints = get_type_hints(kind, include_extras=True)
    found = {field.name: ranges_in(hints[field.name]) for field in dataclasses.fields(kind)}
    return {name: ranges[0] for name, ranges in found.items() if ranges}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings that a run of any method has. A method inherits, adds its own, and says what its images and epochs
    are."""

    dataset: str
    """Layout and test protocol of the data: sysu, regdb, folder or another set that sdcl/data knows."""
    data_dir: Path
    """The data set's own folder."""
    run_dir: Path
    """Where config.json, log.jsonl, checkpoints and results go (RegDB: a folder trial-<n> below it for each trial)."""

    # Data
    published_counts: bool = True
    """Compare the data's identities and images with the published counts and say so when they differ."""
    synthetic_seed: Annotated[int, Range(0, 2**63)] | None = None
    """Draw the embedded synthetic people from this seed into `data_dir` where they are not there yet. None: real
    data."""
    synthetic_identities: tuple[Annotated[int, Range(1, 9999)], Annotated[int, Range(1, 9999)]] = (40, 30)
    """Training and test identities of the synthetic set."""
    synthetic_images: Annotated[int, Range(1, 9999)] = 12
    """Drawn images of a person in a camera that sees the person."""
    synthetic_size: tuple[Annotated[int, Range(16, 4096)], Annotated[int, Range(8, 4096)]] | None = None
    """Height and width of the drawn images in pixels. None: as the network reads them. Methods that are to see the same
    people draw them in the same size."""
    galleries: Literal["seeded", "official"] = "seeded"
    """SYSU-MM01: gallery images of a test by Python's generator seeded with the trial, as in most code, or by the data
    set's own exp/rand_perm_cam.mat. Sizes and expected results are the same, the images are others: a table must say
    which. Data sets with one kind of gallery use that."""
    unpaired: Share = 0.0
    """Protocol of incomplete data: this share of the training identities keeps the images of one modality only, half of
    them the visible, half the infrared ones, chosen by the seed. 0: as the data set is."""
    skip_unreadable: bool = False
    """Leave images that cannot be read out of training and tests, and name them. Without it the programs stop before
    they start; results of fewer images do not compare with published ones."""
    trial: int | None = None
    """RegDB: train or test this one of the ten splits only (1 to 10). Without it, all ten one after another."""
    workers: Annotated[int, Range(0, 1024)] = field(default_factory=spare_cores)
    """Processes that read and augment images, of both modalities (0: read in this process); results do not depend on
    it. Default: the processor's cores but one."""
    embedding_batch: Annotated[int, Range(1, 100_000)] = 256
    """Images at once when embedding for clustering and tests; results do not depend on it."""
    image_cache: Path | None = None
    """Folder for decoded and resized images, built once and read by every epoch and later run (docs/performance.md
    says how large it gets); results do not depend on it. None: read the image files each time."""

    # Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: auto is the GPU; without a usable one only runs on drawn people go to the CPU by themselves."""
    seed: Annotated[int, Range(0, 2**63)] = 1
    """Everything random in an epoch follows from this, the trial and the epoch."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of the network: float32 as published, TF32 matrix products, or bfloat16 autocast; embeddings, losses
    and memories are float32 always."""
    deterministic: bool = False
    """Use deterministic device kernels only, so that two runs on one machine have equal logs and weights. On the CPU
    they have anyway; on a GPU it costs some speed."""
    compile: bool = False
    """Run the network as fused kernels (torch.compile; it needs a compiler and takes its time at the start). The same
    computation, rounded differently, as on another GPU."""

    # The run's folder
    resume: Literal["never", "auto", "always", "changed"] = "never"
    """Go on from the run folder's last checkpoint: auto, if there is one; always (also `--resume` alone), or fail.
    These refuse other settings than the run began with; changed takes them from the next epoch on. Never: refuse a
    folder that holds a run."""
    tensorboard: bool = True
    """Write the log's numbers as curves for TensorBoard too, into the run folder's tensorboard/."""
    select: Literal["test-rank1", "last"] = "test-rank1"
    """The epoch that is kept as best: by Rank-1 on the test set, as published, or simply the last one."""

    NOT_IN_RESULT: ClassVar[tuple[str, ...]] = (
        "data_dir",
        "run_dir",
        "device",
        "workers",
        "embedding_batch",
        "image_cache",
        "resume",
        "published_counts",
        "compile",
        "trial",  # the checkpoint's own trial is compared with the one that is trained
        "skip_unreadable",  # the fingerprint tells whether files changed
        "deterministic",
        "tensorboard",
    )
    """Settings in which a run may go on with other values, since its result does not depend on them."""

    OF_NETWORK: ClassVar[tuple[str, ...]] = ("model",)
    """Settings that follow from a checkpoint's weights; a test takes them from the checkpoint."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.trial is not None and self.dataset != "regdb":
            raise UserError("trial belongs to RegDB alone; other data sets have one training set")
        if self.trial is not None and not 1 <= self.trial <= 10:
            raise UserError(f"trial is {self.trial}: RegDB has trials 1 to 10")

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Height and width of drawn images, in pixels."""
        return self.synthetic_size or self.image_size

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the network sees, in pixels."""
        raise NotImplementedError

    @property
    def rank_on(self) -> Literal["identities", "images"] | None:
        """What Rank-k counts where the method's authors differ from what is usual for the data set; None: as usual."""
        return None

    @property
    def epochs(self) -> int:
        """Parts into which a run is divided: after each one it writes its log line and its checkpoints."""
        raise NotImplementedError

    def stage_name(self, epoch: int) -> str:
        """What an epoch belongs to, for the log's reader, such as `stage 1`; empty where a method has one stage."""
        return ""

    def differences(self, other: RunSettings) -> list[str]:
        """Options whose values differ and that change what is computed, as `--eps 0.6 (was 0.5)`; empty: one run can
        go on as the other. A file that comes with the project is the same in another checkout."""
        mine, theirs = _flat(self.to_json()), _flat(other.to_json())
        return [
            f"{option(k)} {mine[k]} (was {theirs.get(k)})"
            for k in mine
            if k not in self.NOT_IN_RESULT and _in_any_checkout(mine[k]) != _in_any_checkout(theirs.get(k))
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, strings and lists, for config.json and checkpoints."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value

        return plain(dataclasses.asdict(self))

    @classmethod
    def from_json(cls: type[S], data: Any, where: str | Path = "the saved settings") -> S:
        """The inverse of `to_json`; a setting that is absent (an older version wrote the file) has its default.

        Args:
            where: the file that they come from, for messages.

        Raises:
            UserError: they are no settings, or some are of another type, missing, or unknown to this version.
        """
        if not isinstance(data, dict):
            raise UserError(f"{where}: its settings are damaged; restore the file, or start afresh in another folder")
        return from_plain(cls, data, where)


def _in_any_checkout(value: Any) -> Any:
    """The path of a file in this project's `sdcl/assets` from there on; anything else as it is."""
    parts = Path(value).parts[-3:] if isinstance(value, str) else ()
    return Path(*parts) if parts[:-1] == ("sdcl", "assets") else value  # a Path is equal to no text


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """The settings of the network beside the others."""
    out: dict[str, Any] = {}
    for name, value in data.items():
        out |= value if isinstance(value, dict) else {name: value}
    return out


def from_plain(kind: Any, data: dict[str, Any], where: str | Path) -> Any:
    """A settings dataclass, nested ones included, from plain values of the file `where`; UserError where they do not
    fit."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    if unknown := sorted(data.keys() - fields.keys()):
        raise UserError(
            f"{where}: it has settings that this version does not know ({', '.join(unknown)}); use the version "
            "that wrote it"
        )
    needed = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    nested = [name for name in fields if dataclasses.is_dataclass(hints[name])]
    if absent := sorted({*needed, *nested} - data.keys()):
        raise UserError(f"{where}: its settings lack {', '.join(absent)}; it is not of a run of this project")
    values = {}
    for name, value in data.items():
        if name in nested and isinstance(value, dict):
            values[name] = from_plain(hints[name], value, where)
        else:
            values[name] = _value(hints[name], value)
            if not _is_a(values[name], hints[name]):
                raise UserError(f"{where}: its setting {name} is {value!r}, which is damaged or of another version")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _value(hint: Any, value: Any) -> Any:
    """A plain value as its field has it: tuples were written as lists, paths as text."""
    if isinstance(value, list):
        return tuple(value)
    kinds = get_args(hint) or (hint,)
    return Path(value) if Path in kinds and isinstance(value, str) else value


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type, as far as it says: numbers, text, paths, choices and tuples of them."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        several = (parts[0],) * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return (
            isinstance(value, tuple)
            and len(value) == len(several)
            and all(_is_a(v, h) for v, h in zip(value, several, strict=True))
        )
    if parts:                                                  # X | None
        return any(_is_a(value, part) for part in parts)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True
