"""Memory counted rather than measured: the bytes of the tensors that are alive at one time."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PeakMemory"]


class PeakMemory(TorchDispatchMode):
    """Within it, `peak` is the most bytes of new tensors that were alive at one time, on any device, or without data
    (within torch's FakeTensorMode)."""

    def __enter__(self) -> PeakMemory:
        self.alive: dict[int, int] = {}
        self.held = self.peak = 0
        return super().__enter__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in before and id(storage) not in self.alive:
                    self.alive[id(storage)] = storage.nbytes()
                    self.held += storage.nbytes()
                    weakref.finalize(storage, self._dropped, id(storage))
        self.peak = max(self.peak, self.held)
        return out

    def _dropped(self, key: int) -> None:
        self.held -= self.alive.pop(key, 0)
