"""Running statistics of batch normalisation, kept from moving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["frozen_running_statistics"]


@contextmanager
def frozen_running_statistics(model: nn.Module, freeze: bool = True) -> Iterator[None]:
    """Within it, BatchNorms in training mode still use batch statistics, but move copies of their running ones, which
    are dropped at the end."""
    kept = [(m, dict(m.named_buffers())) for m in model.modules() if isinstance(m, _BatchNorm)] if freeze else []
    for m, buffers in kept:
        for name, buffer in buffers.items():
            setattr(m, name, buffer.clone())
    try:
        yield
    finally:
        for m, buffers in kept:
            for name, buffer in buffers.items():
                setattr(m, name, buffer)
