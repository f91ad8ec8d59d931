"""Tests that need a GPU: `bash scripts/check_gpu.sh tests` runs them. Elsewhere they are skipped, with the reason.

`SDCL_GPU_REHEARSAL=1 pytest tests/gpu` lets the CPU stand for the GPU, to try the tests themselves where there is none.
"""

import os

import pytest
import torch

from sdcl.distributed import gpu_trouble


@pytest.fixture
def gpu() -> torch.device:
    if "SDCL_GPU_REHEARSAL" in os.environ:
        return torch.device("cpu")
    if trouble := gpu_trouble():
        pytest.skip(f"no usable GPU: {trouble}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


@pytest.fixture
def two_gpus(gpu: torch.device) -> torch.device:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"it needs two GPUs, there are {torch.cuda.device_count()}")
    return gpu
