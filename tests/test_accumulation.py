"""`--accumulate auto`: memory counted without a GPU, and the number of parts that follows."""

import dataclasses

import pytest
import torch

from sdcl.config import PRESETS, Config, ModelConfig
from sdcl.errors import UserError
from sdcl.frame.peak_memory import PeakMemory
from sdcl.models import build_model
from sdcl.training.accumulation import choose_parts, needed_bytes, step_bytes

CONFIG = dataclasses.replace(
    PRESETS["sysu"],
    identities=4,
    instances=16,
    model=ModelConfig(image_height=32, image_width=16, dim=320, depth=3, heads=2, mlp_ratio=16.0, drop_path=0.1),
)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3, 8])
def test_the_count_is_what_a_step_on_real_tensors_holds(parts):
    model = build_model(CONFIG.model).train()
    model.bn_replicas, model.accumulate = 2, parts
    images = torch.randn(128, 3, 32, 16), torch.randn(64, 3, 32, 16)
    with PeakMemory() as memory:
        out = model(*images)
        torch.cat(out).sum().backward()
    assert step_bytes(CONFIG, parts) == pytest.approx(memory.peak, rel=0.02 if parts <= 2 else 0.15)


@pytest.mark.slow
def test_counting_draws_no_random_numbers():
    state = torch.get_rng_state()
    needed_bytes(CONFIG, 1, 100)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_the_smallest_number_of_parts_that_fits():
    need = {parts: needed_bytes(CONFIG, parts, images=1000) for parts in range(1, 9)}
    assert need[1] > need[2] > need[3] >= need[4]
    for parts in (1, 2, 3):
        found, line = choose_parts(CONFIG, 1000, need[parts])
        assert found == parts and line.startswith(f"accumulate {parts}: counted ") and "GiB are free" in line
    assert choose_parts(CONFIG, 1000, need[1] - 1)[0] == 2 and choose_parts(CONFIG, 1000, need[2] - 1)[0] == 3
    assert "does not fit: --precision bf16" in choose_parts(CONFIG, 1000, 0)[1]
    assert choose_parts(CONFIG, 100_000_000, need[2])[1].endswith("more GPUs")  # the memories of so many images


@pytest.mark.slow
def test_two_gpus_hold_half_of_the_rows():
    assert step_bytes(CONFIG, 1, share=2) < 0.7 * step_bytes(CONFIG, 1)


def test_auto_is_the_default_and_no_part_of_the_result():
    config = PRESETS["sysu"]
    assert config.accumulate == "auto" and not dataclasses.replace(config, accumulate=4).differences(config)
    assert Config.from_json(config.to_json()).accumulate == "auto"
    with pytest.raises(UserError, match="accumulate is 0"):
        dataclasses.replace(config, accumulate=0)
    assert any("--accumulate 8" in line for line in config.less_memory())
