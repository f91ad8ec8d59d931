"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch

GOLDEN = Path(os.environ.get("SDCL_GOLDEN", Path(__file__).parent.parent.parent / "shared" / "golden"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden vectors of the published implementation, or a skip that says where it was looked for."""
    if not (GOLDEN / "check_golden.py").exists():
        pytest.skip(f"no golden vectors: {GOLDEN} does not exist ($SDCL_GOLDEN names another folder)")
    return GOLDEN
