"""An epoch's steps: nothing waits for the device, and what is float32 under `--precision bf16`."""

import dataclasses

import pytest
import torch

from sdcl.config import PRESETS, ModelConfig
from sdcl.models import Embeddings, build_model
from sdcl.training import PseudoLabels, build_memories, step
from sdcl.training.losses import Memories
from sdcl.training.replicas import ReplicaForward

SMALL = ModelConfig(image_height=32, image_width=16, dim=16, depth=3, heads=2, drop_path=0.3)
CONFIG = dataclasses.replace(
    PRESETS["sysu"], model=SMALL, identities=4, instances=4, steps_stage1=4, steps_stage2=4, stage2_from=11,
    heterogeneous_from=0,
)  # fmt: skip
STAGES = {1: 10, 2: 11}
ROWS = 40


def labels_and_memories(stage: int, device: str = "cpu") -> tuple[PseudoLabels, Memories]:
    y = torch.arange(ROWS) % 6 - 1
    labels = PseudoLabels(y, y, y, stage)
    x = [Embeddings(*torch.randn(2, ROWS, 16)) for _ in range(2)]
    memories = build_memories(*x, labels, CONFIG.at(STAGES[stage]), CONFIG)
    for memory in (*memories.clusters.values(), *memories.instances.values()):
        memory.to(device)
    return labels, memories


def batches(count: int, device: str = "cpu"):
    rows = torch.tensor([row for row in range(ROWS) if row % 6][:16])  # the labelled ones
    images = [torch.randn(n, 3, 32, 16, device=device) for n in (32, 16)]
    for _ in range(count):
        yield images[0], rows.repeat(2), images[1], rows


@pytest.mark.slow
@pytest.mark.parametrize("stage, changes", [(1, {}), (2, {"accumulate": 2, "gradient_checkpointing": True})])
def test_steps_never_wait_for_the_device(stage, changes):
    """The network, its gradients, the memories and the optimiser have no values here (meta tensors), so that whatever
    would fetch one to the CPU fails. Meters are looked at in the fourth step; three are taken."""
    labels, memories = labels_and_memories(stage, "meta")
    model = build_model(SMALL).to("meta")
    for name, value in changes.items():
        setattr(model, name, value)
    forward, optimizer = ReplicaForward(model, 2), step.make_optimizer(model, CONFIG)
    arguments = (labels, memories, CONFIG.at(STAGES[stage]), CONFIG)
    assert step.train_epoch(forward, optimizer, batches(3, "meta"), *arguments) == {}
    assert len(optimizer.state) == sum(p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError, match="[Mm]eta"):
        step.train_epoch(forward, optimizer, batches(4, "meta"), *arguments)


@pytest.mark.slow
def test_bfloat16_is_for_the_network_alone(monkeypatch):
    """Blocks multiply in bfloat16; embeddings, losses, memories, gradients and statistics are float32."""
    seen, losses = {}, step.sdcl_losses

    def spied(visible, infrared, *rest):
        seen["embeddings"] = {x.dtype for x in (*visible, *infrared)}
        seen["autocast"] = torch.is_autocast_enabled("cpu")
        found = losses(visible, infrared, *rest)
        seen["losses"] = {x.dtype for x in (found.total, *found.terms.values())}
        return found

    monkeypatch.setattr(step, "sdcl_losses", spied)
    labels, memories = labels_and_memories(1)
    model = build_model(SMALL)
    model.blocks[1].mlp.fc1.register_forward_hook(lambda *args: seen.update(network=args[2].dtype))
    model.stem_visible.conv[3].register_forward_hook(lambda *args: seen.update(stem=args[2].dtype))
    model.deep_head.bn.register_forward_hook(lambda *args: seen.update(normalised=args[2].dtype))
    optimizer = step.make_optimizer(model, CONFIG)
    at = dataclasses.replace(CONFIG.at(10), steps=2)
    means = step.train_epoch(ReplicaForward(model, 2, "bf16"), optimizer, batches(2), labels, memories, at, CONFIG)
    assert all(value == value for value in means.values())
    assert seen == {
        "network": torch.bfloat16, "stem": torch.bfloat16, "normalised": torch.float32, "autocast": False,
        "embeddings": {torch.float32}, "losses": {torch.float32},
    }  # fmt: skip
    held = [*memories.clusters.values(), *memories.instances.values()]
    assert {m.features.dtype for m in held} == {torch.float32}
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.requires_grad), *model.buffers()]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
