"""Seeds: everything random in an epoch follows from (seed, trial, epoch), so that a resumed run repeats an epoch exactly."""

from __future__ import annotations

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
