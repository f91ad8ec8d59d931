"""Row ranges shared among threads, for kernels that release the interpreter lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_blocks(task: Callable[[int, int], Result], n: int, block: int) -> list[Result]:
    """task(start, stop) for consecutive ranges of 0 … n, in as many threads as torch uses; the results in order."""
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        return list(pool.map(lambda start: task(start, min(start + block, n)), range(0, n, block)))
