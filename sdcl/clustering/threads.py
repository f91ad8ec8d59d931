"""Row ranges shared among threads, for work that releases the interpreter lock: compiled kernels, SciPy, NumPy."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_blocks(task: Callable[[int, int], Result], n: int, block: int) -> list[Result]:
    """task(start, stop) for consecutive ranges of 0 … n of length `block`; the results in order."""
    return in_ranges(task, [(start, min(start + block, n)) for start in range(0, n, block)])


def in_ranges(task: Callable[[int, int], Result], ranges: Iterable[tuple[int, int]]) -> list[Result]:
    """task(start, stop) for each of the ranges, in as many threads as torch uses; the results in order."""
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        return list(pool.map(lambda limits: task(*limits), ranges))
