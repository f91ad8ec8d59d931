"""Seeds: everything random in an epoch follows from (seed, trial, epoch), so that a resumed run repeats an epoch
exactly, without any generator's state in its checkpoint.

At the start of each epoch Python's, NumPy's and torch's generators are seeded from these numbers (a method that draws
for its own process's rows alone adds the process's number; SDCL's stochastic depth is drawn for the whole batch, on
every process alike); the samplers and augmentations have seeds of their own, made of the same numbers,
the modality and, for an image, its place in the epoch (`sdcl.data.loading`), so that workers do not matter either.
"""

from __future__ import annotations

import os
import random
import zlib

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed from numbers and names; the same on every machine."""
    return zlib.crc32("/".join(map(str, parts)).encode()) & 0x7FFFFFFF


def seed_everything(*parts: int | str) -> None:
    """Seeds Python's, NumPy's and torch's generators (all devices) from `derive_seed`."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def use_deterministic_kernels(on: bool) -> None:
    """Lets torch use deterministic kernels only, or an error where an operation has none (`--deterministic`).

    cuBLAS needs a fixed workspace for it, which it reads from CUBLAS_WORKSPACE_CONFIG when it starts: call this before
    anything runs on a GPU. A value that is already set stays.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(on)
