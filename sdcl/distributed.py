"""Processes and devices: everything that knows how many there are. With a single process each function is the identity.

Start several with torchrun. Losses see the whole batch on every process, so memories stay equal without any exchange;
what travels is embeddings and neighbour lists (gathered), gradients (summed), pseudo-labels and running statistics
(from process 0).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdcl.errors import UserError
from sdcl.seeds import use_deterministic_kernels
from sdcl.settings import RunSettings

T = TypeVar("T")


WAIT = timedelta(hours=6)
"""How long a process waits for the others before it gives up: one of them may be reading all images or building caches
meanwhile. Where a process dies, torchrun ends the others at once."""


def start(config: RunSettings) -> torch.device:
    """Joins the processes that torchrun started, if it did, sets the arithmetic that a run asks for, and returns this
    process's device.

    Raises:
        UserError: there is no usable GPU, and neither `--device cpu` nor drawn people (`synthetic_seed`) say that the
            CPU is meant; or torchrun started more processes here than there are GPUs.
    """
    use_deterministic_kernels(config.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    device = _device(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        gpu = device.type == "cuda"
        dist.init_process_group("nccl" if gpu else "gloo", timeout=WAIT, device_id=device if gpu else None)
    return device


def _device(config: RunSettings) -> torch.device:
    trouble = None if config.device == "cpu" else gpu_trouble()
    if config.device == "cpu" or (trouble and config.device == "auto" and config.synthetic_seed is not None):
        return torch.device("cpu")
    if trouble:
        raise UserError(
            f"no usable GPU: {trouble}. docs/troubleshooting.md says which cards and drivers go with which torch; "
            "--device cpu computes on the processor, which takes weeks at the published sizes"
        )
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > gpus:
        raise UserError(
            f"torchrun started {here} processes on this machine, which has {gpus} GPU(s): --nproc-per-node {gpus}"
        )
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def gpu_trouble() -> str | None:
    """Why torch cannot use a GPU here, by what it sees; None where it can."""
    built = torch.version.cuda and f"built for CUDA {torch.version.cuda}"
    seen = f"torch {torch.__version__} is {built or 'built without CUDA'}"
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = "no device" if hidden is None else f"no device (CUDA_VISIBLE_DEVICES is {hidden!r})"
        return f"{seen}, {_driver()}, {devices}"
    major, minor = torch.cuda.get_device_capability()
    kinds = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", arch) for arch in torch.cuda.get_arch_list()]
    # Binary code runs on later minor versions of its major one; PTX ("compute") on everything later.
    if any(
        k and (int(k[2]), int(k[3])) <= (major, minor) and (k[1] == "compute" or int(k[2]) == major) for k in kinds
    ):
        return None
    name = torch.cuda.get_device_name()
    return f"{seen} and for {', '.join(torch.cuda.get_arch_list())}, {name} is sm_{major}{minor}, {_driver()}"


def _driver() -> str:
    """The NVIDIA driver, as the system tells it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "no NVIDIA driver"
    number = re.search(r"\d+\.\d+(\.\d+)?", text)
    return f"NVIDIA driver {number[0]}" if number else "an NVIDIA driver of unknown version"


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


def check_shared(folder: Path) -> None:
    """Raises UserError, on every process, unless all of them see the same folder: those of several machines need a
    shared drive. It exists on process 0."""
    if world() == 1:
        return

    def mark() -> str:
        name = f".seen-{secrets.token_hex(8)}"
        (folder / name).touch()
        return name

    name = from_main(mark)
    seen: list[Any] = [None] * world()
    dist.all_gather_object(seen, (folder / name).exists())
    if is_main():
        (folder / name).unlink(missing_ok=True)
    if not all(seen):
        raise UserError(
            f"--run-dir {folder} is not one folder for all machines: processes "
            f"{', '.join(str(r) for r, there in enumerate(seen) if not there)} do not see what process 0 writes there. "
            "Give a folder on a drive that all machines share"
        )
