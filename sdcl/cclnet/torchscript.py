"""The tensors of a TorchScript archive, read as plain data: nothing of the program in it is compiled or run.

OpenAI publishes CLIP as such archives. `torch.load` refuses them, and `torch.jit.load`, besides being deprecated,
compiles what is inside and runs parts of it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_torchscript", "read_torchscript"]

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with the pickle of a program's constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the archive's module by their full names, as its `state_dict()` would give them.

    Raises one of many exceptions when the file is damaged, since the standard library does.
    """
    with zipfile.ZipFile(path) as archive:
        data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(data) as file:
            root = _Reader(file, archive, data.removesuffix("data.pkl")).load()
    return dict(_tensors(root, ""))


class _Module:
    """Stands for every object that is no tensor: keeps its attributes and does nothing else."""

    def __init__(self, *arguments: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


class _Reader(pickle.Unpickler):
    """Knows tensors, their storages and ordered dicts; any other name in the pickle becomes an inert `_Module`."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Module

    def persistent_load(self, pid: Any) -> Tensor:
        """("storage", type, key, device, numbers) -> the numbers, on the CPU."""
        _, dtype, key, *_ = pid
        if key not in self.storages:
            self.storages[key] = torch.frombuffer(bytearray(self.archive.read(f"{self.folder}data/{key}")), dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _tensors(module: _Module, prefix: str):
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
