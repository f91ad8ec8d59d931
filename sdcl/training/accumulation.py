"""How many parts a step takes the transformer's rows in (`--accumulate auto`): the fewest that fit into the memory.

Memory is counted: a step's forward and backward pass run once on tensors without data, and the bytes that are alive at
one time are added up. A GPU's kernels need some workspace beside it, which `RESERVE` and `MARGIN` leave room for.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sdcl import distributed
from sdcl.config import Config
from sdcl.frame.peak_memory import PeakMemory
from sdcl.models import SDCLModel

__all__ = ["choose_parts", "free_bytes", "needed_bytes", "step_bytes"]

GIB = 2**30
RESERVE = GIB
"""Bytes left to kernels' workspaces, losses and the device's own needs."""
MARGIN = 1.05
"""Allowance for memory that the allocator cannot use, between the pieces that it handed out."""
MOST = 64
"""Parts beyond which nothing is saved."""


def choose_parts(config: Config, images: int, free: int, share: int = 1) -> tuple[int, str]:
    """The smallest number of parts whose counted memory fits, and a line that says so.

    Args:
        images: training images of both modalities, whose embeddings and memories are held beside the step.
        free: bytes.
        share: GPUs or processes that a step's rows are spread over.
    """
    needs = {1: needed_bytes(config, 1, images, share)}
    parts = 1
    while needs[parts] > free and parts < MOST:
        parts += 1
        needs[parts] = needed_bytes(config, parts, images, share)
    line = f"accumulate {parts}: counted {needs[parts] / GIB:.1f} GiB beside the weights, {free / GIB:.1f} GiB are free"
    if parts > 1:
        line += f" (1 part: {needs[1] / GIB:.1f})"
    if needs[parts] > free:
        line += "; this does not fit: --precision bf16, --gradient-checkpointing, or more GPUs"
    return parts, line


def free_bytes(device: torch.device) -> int:
    """What this process can still allocate on a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def needed_bytes(config: Config, parts: int, images: int, share: int = 1) -> int:
    """Counted bytes beside the weights in training: a step, the optimiser's momentum, embeddings and instance memories
    of all images at both levels, and `RESERVE`."""
    held = 4 * _parameters(config) + 2 * images * 2 * config.model.dim * 4
    return int(MARGIN * step_bytes(config, parts, share)) + held + RESERVE


def step_bytes(config: Config, parts: int, share: int = 1) -> int:
    """Most bytes that a step's forward and backward pass hold at one time, gradients included, weights not.

    Up to two parts they are counted. From there on they fall with 1 / parts, to what the convolutional stems need.
    """
    if parts <= 2:
        return _counted(config, parts, share)
    two, four = _counted(config, 2, share), _counted(config, 4, share)
    falling = 4 * (two - four)  # bytes = rest + falling / parts
    shallow = replace(config, model=replace(config.model, depth=2))
    stems = _counted(shallow, 8, share) + 4 * (_parameters(config) - _parameters(shallow))
    return max(two - falling // 2 + falling // parts, stems)


@cache
def _parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in SDCLModel(config.model).parameters())


@cache
def _counted(config: Config, parts: int, share: int) -> int:
    size, rows, state = config.image_size, config.batch_size // share, torch.get_rng_state()
    with FakeTensorMode():
        model = SDCLModel(config.model).train()
        model.bn_replicas = max(1, config.bn_replicas // share)
        model.gradient_checkpointing, model.accumulate = config.gradient_checkpointing, parts
        visible, infrared = (torch.empty(n, 3, *size) for n in (2 * rows, rows))
        with PeakMemory() as memory:
            with distributed.autocast(torch.device("cpu"), config.precision):
                out = model(visible, infrared)
            torch.cat(out).float().sum().backward()
    torch.set_rng_state(state)
    return memory.peak
