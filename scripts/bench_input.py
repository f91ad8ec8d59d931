"""Images a second: the training chain as it is described against the fast one that training uses, image files against a
cache of resized ones, augmentation in workers against that on the device.

    python scripts/bench_input.py                             # drawn people, seen as 288 x 144
    python scripts/bench_input.py --data data/sysu            # a prepared SYSU-MM01; its visible training images
    python scripts/bench_input.py --workers 8 --device cuda   # as training would run on this machine

All ways run in turn, round after round; medians are printed. Without workers and GPU the clock is this process's own
processor time, which other programs on the machine change little. "reading" (and augmenting) is what is left to the
processor when a GPU does the rest: batches are loaded and thrown away. A view is an image as the network sees it;
training takes two of each visible image.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import torch

from sdcl.config import PRESETS, Config  # noqa: E402
from sdcl.data.cache import pixel_reader  # noqa: E402
from sdcl.data.loading import evaluation_loader, training_loader  # noqa: E402
from sdcl.data.readers import sysu  # noqa: E402
from sdcl.data.records import ImageRecord  # noqa: E402
from sdcl.data.sampler import PseudoIdentityBatches  # noqa: E402
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout  # noqa: E402
from sdcl.data.transforms import normalize_bytes  # noqa: E402
from sdcl.training.views import Source, TrainingBatches, VisibleTransform  # noqa: E402

TRAINING: dict[str, tuple[Any, bool]] = {
    "augmented in workers, as described": ("workers", False),
    "augmented in workers, files": ("workers", False),
    "augmented on the device, files": ("device", False),
    "augmented on the device, cache": ("device", True),
    "reading and augmenting alone, files": ("workers", False),
    "reading for the device, files": ("device", False),
    "reading for the device, cache": ("device", True),
}
"""Way of training: where it augments, and whether it reads a cache."""


def draw_people(root: Path, identities: int, height: int, width: int) -> None:
    """Images a third larger than the network sees them: real ones are hardly ever of its size."""
    write_sysu_layout(root, SyntheticConfig(identities, 2, height=height * 4 // 3, width=width * 4 // 3))
    sysu.prepare(root, progress=False)


class Normalized:
    """A loader's bytes as the network takes them, made on the device."""

    def __init__(self, loader: Iterable, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        for images in self.loader:
            yield normalize_bytes(images.to(self.device, non_blocking=True))


def embedding_loaders(
    records: list[ImageRecord], config: Config, cache: Path, device: torch.device
) -> dict[str, Iterable]:
    paths, size = [r.path for r in records], (config.model.image_height, config.model.image_width)
    readers = {
        name: pixel_reader(paths, "visible", size, "bicubic", folder, config.workers)
        for name, folder in (("files", None), ("cache", cache))
    }
    reading: dict[str, Iterable] = {
        name: evaluation_loader(paths, torch.from_numpy, config.embedding_batch, config.workers, read)
        for name, read in readers.items()
    }
    whole: dict[str, Iterable] = {name: Normalized(loader, device) for name, loader in reading.items()}
    return whole | {f"reading, {name}": loader for name, loader in reading.items()}


def training_loaders(
    records: list[ImageRecord], config: Config, cache: Path, steps: int, device: torch.device
) -> dict[str, Iterable]:
    batches = PseudoIdentityBatches(
        [r.identity for r in records], [r.camera for r in records], config.identities, config.instances, steps, 0
    )
    loaders: dict[str, Iterable] = {}
    for name, (augment, cached) in TRAINING.items():
        settings = dataclasses.replace(config, augment=augment, image_cache=cache if cached else None)
        ready = TrainingBatches({"visible": Source(records, batches, 0)}, settings, device)
        loaders[name] = Visible(ready.loader if name.startswith("reading") else ready)
    size, padding = config.image_size, config.crop_padding
    chain = [VisibleTransform(*size, exchange, padding) for exchange in (False, True)]
    loaders[next(iter(TRAINING))] = training_loader(records, chain, batches, config.workers, 0)
    return loaders


class Visible:
    """The batches of a loader's one modality."""

    def __init__(self, loader: Iterable) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for ((images, rows),) in self.loader:
            yield images if isinstance(images, torch.Tensor) else images[0], rows


def table(title: str, loaders: dict[str, Iterable], device: torch.device, rounds: int, clock: Callable) -> None:
    """Runs the loaders, brings what they give to the device, and prints images a second."""
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, loader in loaders.items():
            start, count = clock(), 0
            for batch in loader:
                images = batch if isinstance(batch, torch.Tensor) else batch[0]
                count += len(images.to(device, non_blocking=True))
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms files and device up
                speeds[name].append(count / (clock() - start))
    first = median(next(iter(speeds.values())))
    print(f"\n{title:36} {'views/s':>9} {'ratio':>7}")
    for name, values in speeds.items():
        print(f"{name:36} {median(values):9.0f} {median(values) / first:6.1f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared set in SYSU-MM01's layout; without it people are drawn")
    parser.add_argument("--people", type=int, default=8, help="drawn training identities, about 45 visible images each")
    parser.add_argument("--height", type=int, default=288)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--workers", type=int, default=0, help="processes that read")
    parser.add_argument("--device", default="cpu", help="where --augment device augments")
    parser.add_argument("--identities", type=int, default=8, help="of a batch")
    parser.add_argument("--instances", type=int, default=16, help="of each; two views of all of them make a batch")
    parser.add_argument("--steps", type=int, default=2, help="batches of a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    model = dataclasses.replace(PRESETS["sysu"].model, image_height=args.height, image_width=args.width)
    sizes = {"identities": args.identities, "instances": args.instances, "workers": args.workers}
    config, device = dataclasses.replace(PRESETS["sysu"], model=model, **sizes), torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        cache, data = Path(folder, "cache"), args.data or Path(folder, "people")
        if args.data is None:
            draw_people(data, args.people, args.height, args.width)
        records = sysu.train_records(data, "visible")
        alone = args.workers == 0 and device.type == "cpu"
        clock = process_time if alone else perf_counter
        start = clock()
        loaders = embedding_loaders(records, config, cache, device)
        print(
            f"{len(records)} images, seen as {args.height} x {args.width}; {args.workers} workers, device {device}, "
            f"{torch.get_num_threads()} threads, {'processor' if alone else 'wall'} time; "
            f"cached in {clock() - start:.1f} s"
        )
        table("embedding, bicubic", loaders, device, args.rounds, clock)
        loaders = training_loaders(records, config, cache, args.steps, device)
        table("training, two views", loaders, device, args.rounds, clock)


if __name__ == "__main__":
    main()
