"""What `check_golden.py` calls where a case has no public name behind it."""

import re
from pathlib import Path

from torch import Tensor

from sdcl.config import ModelConfig
from sdcl.models import build_model, load_checkpoint, published_names
from sdcl.training.replicas import forward_replicas


def training_forward(path: Path, visible: Tensor, infrared: Tensor, replicas: int, weights: Tensor,
                     gradients: list[str]) -> dict[str, Tensor | dict[str, Tensor]]:
    """G3: a pass in training mode, stochastic depth off, with the loss Σ weights[0]·deep + weights[1]·shallow."""
    model = build_model(ModelConfig(drop_path=0.0)).to(visible.device)
    load_checkpoint(model, path)
    names = published_names(model)
    model.train()
    deep, shallow = forward_replicas(model, visible, infrared, replicas)
    (weights[0] * deep + weights[1] * shallow).sum().backward()
    by_name = {names[ours]: p.grad for ours, p in model.named_parameters()}
    statistics = {names[ours]: b for ours, b in model.named_buffers() if re.search("running|tracked", ours)}
    return {"deep": deep, "shallow": shallow, "gradients": {n: by_name[n] for n in gradients}, "stats": statistics}
