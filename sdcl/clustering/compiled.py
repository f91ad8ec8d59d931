"""Compiled loops and optional packages: what this installation has, and threads that share the rows of a loop."""

import importlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@lru_cache
def usable(package: str) -> bool:
    """Whether the optional package (numba, faiss) can be imported. One that is there but broken is warned of, once."""
    try:
        importlib.import_module(package)
    except Exception as error:  # a broken installation can raise nearly anything
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        if not absent:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            warnings.warn(
                f"{package} is installed but cannot be used ({said}); clustering goes on without it, more slowly: "
                f"reinstall {package}",
                RuntimeWarning,
                stacklevel=2,
            )
        return False
    return True


def compiled(function: Callable, **options: Any) -> Any:
    """The function compiled by numba, on its first call or from the copy on disk; it runs without the interpreter lock.

    numba's file on disk refers to the module, but its name does not: a copy of this folder that came with its
    `__pycache__` would look for the module that it was copied from. So the name says it here.
    """
    from numba import njit

    function.__qualname__ = f"{function.__module__}.{function.__qualname__}"
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's can be written to
        return njit(nogil=True, **options)(function)


def compiled_sums(function: Callable) -> Any:
    """`compiled`, and sums may be split into the lanes of a vector."""
    return compiled(function, fastmath={"reassoc", "contract"})


def in_blocks(task: Callable[[int, int], Result], n: int, block: int) -> list[Result]:
    """task(start, stop) for consecutive ranges of 0 … n of length `block`; the results in order.

    In as many threads as torch uses, for work that releases the interpreter lock.
    """
    ranges = [(start, min(start + block, n)) for start in range(0, n, block)]
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        return list(pool.map(lambda limits: task(*limits), ranges))
