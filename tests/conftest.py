"""What all tests share. They compute on the CPU, wherever they run; only `pytest tests/gpu` sees the GPUs."""

import gc
import os
from pathlib import Path

import pytest

GOLDEN = Path(os.environ.get("SDCL_GOLDEN", Path(__file__).parent.parent.parent / "shared" / "golden"))
GPU = Path(__file__).parent / "gpu"

# Before torch is imported. A thread a process: several processes run tests, and what they fork has no other thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    if not any(GPU in (path := Path(argument.partition("::")[0]).resolve(), *path.parents) for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch  # not above: the process that hands the tests out needs none of it

    if not torch.cuda.is_available() and "SDCL_GPU_REHEARSAL" not in os.environ:
        for item in items:
            if GPU in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no GPU is seen: pytest tests/gpu, on a machine that has one"))


def pytest_collection_finish() -> None:
    """Everything is imported: what is there stays, and need not be looked through whenever garbage is collected."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # modules are taken down in order


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden vectors of the published implementation, or a skip that says where it was looked for."""
    if not (GOLDEN / "check_golden.py").exists():
        pytest.skip(f"no golden vectors: {GOLDEN} does not exist ($SDCL_GOLDEN names another folder)")
    return GOLDEN
