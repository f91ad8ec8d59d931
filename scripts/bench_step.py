"""Time and memory of a training step, its forward pass and of embedding, against a plain form in the same run.

    python scripts/bench_step.py                                  # the published network and batch: for a GPU
    python scripts/bench_step.py --preset demo --rounds 5         # the demo's, for a CPU
    python scripts/bench_step.py --ways plain bf16 bf16+compile --identities 4

"training step" is the programs' own: losses, memories and optimiser on random images, with pseudo-labels drawn at
random. "forward" is its network alone, "embedding" what clustering and tests do with an image and its mirror image.
Each way has a network of its own, alone on the device; after a round that is not measured (it compiles) medians are
printed, and ratios to the first way that fits. On one CPU thread the time is the processor's for this process alone,
else the clock's. Operations are those that the plain form needs, however often a way computes them. Memory is the peak:
on a GPU all that the process holds there, on the CPU the tensors alive at one time above weights and optimiser, counted
in a pass of its own (compiled code cannot be).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD
from torch.utils.flop_counter import FlopCounterMode

from sdcl import distributed  # noqa: E402
from sdcl.config import PRESETS, Config  # noqa: E402
from sdcl.data.sampler import PseudoIdentityBatches  # noqa: E402
from sdcl.errors import run_program  # noqa: E402
from sdcl.frame.peak_memory import PeakMemory  # noqa: E402
from sdcl.models import Embeddings, SDCLModel, build_model, channels_last_stems, compile_parts  # noqa: E402
from sdcl.tables import align_columns  # noqa: E402
from sdcl.training import PseudoLabels, build_memories  # noqa: E402
from sdcl.training.method import METHOD  # noqa: E402
from sdcl.training.replicas import ReplicaForward  # noqa: E402
from sdcl.training.step import make_optimizer, train_epoch  # noqa: E402

PEAKS: dict[str, dict[str, float]] = {
    "H100 PCIe": {"fp32": 51, "tf32": 378, "bf16": 756},
    "H100": {"fp32": 67, "tf32": 495, "bf16": 989},
    "H200": {"fp32": 67, "tf32": 495, "bf16": 989},
    "A100": {"fp32": 19.5, "tf32": 156, "bf16": 312},
}
"""Dense TFLOP/s by the makers' data sheets; the first name that the device's contains counts."""


@dataclass(frozen=True)
class Way:
    """How the network is run: a precision, and what is changed of a model and the settings."""

    what: str
    precision: str = "fp32"
    plain: bool = False
    compile: bool = False
    channels_last: bool = False
    gradient_checkpointing: bool = False
    accumulate: int = 1


WAYS = {
    "plain": Way("float32, attention written out, one optimiser kernel a tensor and operation", plain=True),
    "fp32": Way("the default"),
    "tf32": Way("--precision tf32", "tf32"),
    "bf16": Way("--precision bf16", "bf16"),
    "compile": Way("--compile", compile=True),
    "bf16+compile": Way("--precision bf16 --compile", "bf16", compile=True),
    "channels-last": Way("--channels-last", channels_last=True),
    "checkpointing": Way("--gradient-checkpointing", gradient_checkpointing=True),
    "accumulate-2": Way("--accumulate 2", accumulate=2),
    "accumulate-4": Way("--accumulate 4", accumulate=4),
}


class Bench:
    """A network that is run in one way: its step, forward pass and embedding, on random images and pseudo-labels."""

    def __init__(self, way: Way, config: Config, device: torch.device, population: int = 1024, steps: int = 1) -> None:
        torch.manual_seed(0)
        self.way, self.config, self.device = way, config, device
        self.settings = dataclasses.replace(  # the first epoch that has all losses
            config.at(max(config.homogeneous_from, config.heterogeneous_from)), steps=steps
        )
        self.model = build_model(config.model).to(device)
        self.model.gradient_checkpointing, self.model.accumulate = way.gradient_checkpointing, way.accumulate
        self.optimizer = make_optimizer(self.model, config)
        if way.plain:
            self.optimizer = SGD(self.optimizer.param_groups, foreach=False, fused=False)
            for block in self.model.blocks:
                block.attn.fused_attn = False  # type: ignore[union-attr, assignment]
        if way.channels_last:
            channels_last_stems(self.model)
        if way.compile:
            compile_parts(self.model)
        self.forward = ReplicaForward(self.model, config.bn_replicas, way.precision, "none")
        labels = torch.arange(population) % max(config.identities, population // (2 * config.instances))
        self.labels = PseudoLabels(labels, labels, labels, 1)
        x = [Embeddings(*torch.randn(2, population, self.model.dim, device=device)) for _ in range(2)]
        self.memories = build_memories(x[0], x[1], self.labels, self.settings, config)
        draw = PseudoIdentityBatches(
            labels.numpy(), [i % 4 for i in range(population)], config.identities, config.instances, 1, seed=0
        )
        rows = torch.tensor(next(iter(draw)))
        self.batch = (self.images(2 * len(rows)), rows.repeat(2), self.images(len(rows)), rows)
        self.embedded = self.images(config.embedding_batch)

    def images(self, n: int) -> Tensor:
        return torch.randn(n, 3, self.config.model.image_height, self.config.model.image_width).to(self.device)

    def step(self) -> None:
        batches: Any = [self.batch] * self.settings.steps
        args = (self.labels, self.memories, self.settings, self.config)
        train_epoch(self.forward, self.optimizer, batches, *args)
        self.optimizer.zero_grad()

    def forward_only(self) -> None:
        self.model.train()
        for _ in range(self.settings.steps):
            self.forward(self.batch[0], self.batch[2])

    def embed(self) -> None:
        self.model.eval()
        for _ in range(self.settings.steps):
            with distributed.autocast(self.device, self.way.precision), torch.no_grad():
                METHOD.embedding(self.model, self.embedded, "visible")

    def phases(self) -> dict[str, tuple[Callable[[], None], int]]:
        """What is measured, and how many images it takes."""
        seen = len(self.batch[0]) + len(self.batch[2])
        n = self.settings.steps
        return {
            "training step": (self.step, n * seen),
            "forward": (self.forward_only, n * seen),
            "embedding": (self.embed, n * len(self.embedded)),
        }


def seconds(run: Callable[[], None], way: Way, device: torch.device) -> float:
    """Of one call, the device's work included; of the processor where that is one thread of a shared machine."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = way.precision == "tf32"
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    clock = process_time if device.type == "cpu" and torch.get_num_threads() == 1 else perf_counter
    wait()
    start = clock()
    run()
    wait()
    return clock() - start


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Most memory of one call: on a GPU all that this process holds there, weights and optimiser included; on the CPU
    what the tensors need above that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved()
    with PeakMemory() as memory:
        run()
    return memory.peak


def operations(config: Config) -> dict[str, float]:
    """Operations an image of each phase, counted on the network's plain form with tensors that have no data."""
    with FakeTensorMode():
        model = SDCLModel(dataclasses.replace(config.model, drop_path=0.0)).train()
        visible, infrared = (torch.empty(2, 3, *config.image_size) for _ in range(2))
        counts = {}
        with FlopCounterMode(display=False) as counter:
            out = model(visible, infrared)
            counts["forward"] = counter.get_total_flops() / 4
            torch.cat(out).sum().backward()
            counts["training step"] = counter.get_total_flops() / 4
    return {**counts, "embedding": 2 * counts["forward"]}  # an image and its mirror image


def measured(
    config: Config, ways: list[str], device: torch.device, rounds: int, peaks: dict[str, float], steps: int
) -> dict[str, list[list[str]]]:
    """A table for each phase: a row for each way, as `HEADS`. One network is there at a time; where one does not fit,
    its rows say so."""
    tables: dict[str, list[list[str]]] = {phase: [] for phase in PHASES}
    base: dict[str, float] = {}
    needs = operations(config)
    for name in ways:
        try:
            found = measure(WAYS[name], config, device, rounds, steps)
        except torch.cuda.OutOfMemoryError:
            found = {}
        for phase, rows in tables.items():
            if phase not in found:
                rows.append([name, "out of memory", *["-"] * (len(HEADS) - 2)])
                continue
            took, images, peak = found[phase]
            base.setdefault(phase, took)
            speed = images * needs[phase] / took / 1e12
            most = peaks.get(WAYS[name].precision)
            rows.append([
                name, f"{took / steps * 1e3:.1f}", f"{base[phase] / took:.2f}x", f"{images / took:.0f}",
                f"{speed:.3g}", f"{speed / most:.1%}" if most else "-", "-" if peak is None else f"{peak / 1e6:.0f}",
            ])  # fmt: skip
    return tables


def measure(
    way: Way, config: Config, device: torch.device, rounds: int, steps: int
) -> dict[str, tuple[float, int, int | None]]:
    """Phase → median seconds of a round, its images, and its peak of memory in bytes, where it can be counted."""
    bench, found = Bench(way, config, device, steps=steps), {}
    for phase, (run, images) in bench.phases().items():
        seconds(run, way, device)  # compiles, and fills the caches
        took = median(seconds(run, way, device) for _ in range(rounds))
        known = device.type == "cuda" or not way.compile
        found[phase] = took, images, peak_bytes(run, device) if known else None
        bench.optimizer.zero_grad()
    del bench, run
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


PHASES = ("training step", "forward", "embedding")
HEADS = ["way", "ms", "speed", "images/s", "TFLOP/s", "MFU", "peak MB"]


def main(arguments: list[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="sysu", help="network and batch")
    parser.add_argument("--identities", type=int, help="of a batch; default: the preset's")
    parser.add_argument("--instances", type=int, help="of each; default: the preset's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="in a round")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for MFU; default: known for H100, H200, A100")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[w for w in WAYS if w != "tf32" or name != "CPU"])
    args = parser.parse_args(arguments)

    config = PRESETS[args.preset]
    config = dataclasses.replace(
        config,
        identities=args.identities or config.identities,
        instances=args.instances or config.instances,
        model=dataclasses.replace(config.model, pretrained=None),
    )
    peaks: dict[str, float] = next((p for known, p in PEAKS.items() if known in name), {})
    if args.peak_tflops:
        peaks = dict.fromkeys(("fp32", "tf32", "bf16"), args.peak_tflops)
    model = config.model
    print(
        f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}; {args.preset}: depth {model.depth}, "
        f"width {model.dim}, {model.image_height}x{model.image_width}; {2 * config.batch_size} visible and "
        f"{config.batch_size} infrared images a step, {config.embedding_batch} to embed"
    )
    print(align_columns([["  " + way, WAYS[way].what] for way in args.ways], left=2))
    for phase, rows in measured(config, args.ways, device, args.rounds, peaks, args.steps).items():
        print(f"\n{phase}\n{align_columns([HEADS, *rows], left=1)}", flush=True)


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
