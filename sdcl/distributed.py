"""Processes and devices: everything that knows how many there are. With a single process each function is the identity.

Start several with torchrun. Losses see the whole batch on every process, so memories stay equal without any exchange;
what travels is embeddings and neighbour lists (gathered), gradients (summed), pseudo-labels and running statistics
(from process 0).
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdcl.seeds import use_deterministic_kernels
from sdcl.settings import RunSettings

T = TypeVar("T")


def start(config: RunSettings) -> torch.device:
    """Joins the processes that torchrun started, if it did, sets the arithmetic that a run asks for, and returns this
    process's device."""
    use_deterministic_kernels(config.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return device


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def shares(n: int) -> list[slice]:
    """n rows cut into one contiguous part a process, the first ones larger by one where it does not come out even."""
    base, extra = divmod(n, world())
    ends = [base * (r + 1) + min(r + 1, extra) for r in range(world())]
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def from_main(make: Any) -> Any:
    """make() of process 0, given to all; an exception there is raised on all (nobody waits for ever)."""
    if world() == 1:
        return make()
    box: list[Any] = [None]
    if is_main():
        try:
            box = [make()]
        except Exception as error:  # noqa: BLE001 - it is raised again below, on every process
            box = [error]
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes [world·n, d], process after process; the gradient flows into this process's own rows only.

    Every process forms the whole loss, so the rows' gradients are complete where they are, and the parameters'
    gradients of the processes add up to the whole (`sum_gradients`).
    """
    if world() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank()] = x
    return torch.cat(parts)


def gather_shares(x: Tensor, n: int) -> Tensor:
    """All n rows, of which each process has its share (`shares`) in x; no gradient."""
    if world() == 1:
        return x
    lengths = [share.stop - share.start for share in shares(n)]
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([p[:n] for p, n in zip(parts, lengths, strict=True)])


def sum_gradients(model: nn.Module) -> None:
    """Adds up the parameters' gradients over the processes, in one message."""
    if world() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for g, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(total.view_as(g))


def share_statistics(model: nn.Module) -> None:
    """Gives process 0's running statistics (those of replica 0, section 9.6) to all."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 arithmetic where it is safe, for precision "bf16"; nothing otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()
