"""What `check_golden.py` calls where a case has no public name behind it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sdcl.config import PRESETS, ModelConfig
from sdcl.memory import ClusterMemory, InstanceMemory
from sdcl.models import Embeddings, build_model, load_checkpoint, published_names
from sdcl.training import Memories, sdcl_losses

MODALITIES, LEVELS = ("visible", "infrared"), ("deep", "shallow")


def training_forward(
    path: Path, visible: Tensor, infrared: Tensor, replicas: int, weights: Tensor, gradients: list[str]
) -> dict[str, Tensor | dict[str, Tensor]]:
    """G3: a pass in training mode, stochastic depth off, with the loss Σ weights[0]·deep + weights[1]·shallow."""
    model = build_model(ModelConfig(drop_path=0.0)).to(visible.device)
    load_checkpoint(model, path)
    names = published_names(model)
    model.train()
    model.bn_replicas = replicas
    deep, shallow = model(visible, infrared)
    (weights[0] * deep + weights[1] * shallow).sum().backward()
    by_name = {names[ours]: p.grad for ours, p in model.named_parameters()}
    statistics = {names[ours]: b for ours, b in model.named_buffers() if re.search("running|tracked", ours)}
    return {"deep": deep, "shallow": shallow, "gradients": {n: by_name[n] for n in gradients}, "stats": statistics}


def training_step(inputs: dict[str, Tensor], p: dict[str, Any]) -> dict[str, Tensor]:
    """G11: the losses of a step, their gradients, and the memories that it leaves behind.

    p holds the stage and, where it is not the stage's first, the epoch. Results are named like the inputs: "loss",
    "grad/visible_deep" (with respect to x_visible_deep), "centers_visible_deep" (stage 2: "centers_shared_deep"),
    "instances_visible_deep" …
    """
    stage = p["stage"]
    config = PRESETS[p.get("dataset", "sysu")]
    epoch = p.get("epoch", 0 if stage == 1 else config.stage2_from)
    config = dataclasses.replace(config, stage2_from=epoch + 2 - stage)  # whatever the epoch, this is the stage
    settings = config.at(epoch)
    owners = {m: m if stage == 1 else "shared" for m in MODALITIES}
    memories = {
        name: ClusterMemory(inputs[name].clone(), settings.cluster_momentum, config.temperature)
        for name in sorted({f"centers_{owner}_{level}" for owner in owners.values() for level in LEVELS})
    }
    keys = [(m, level) for m in MODALITIES for level in LEVELS]
    instances = {
        (m, level): InstanceMemory(inputs[f"instances_{m}_{level}"].clone(), config.instance_momentum)
        for m, level in keys
    }
    step = Memories({(m, level): memories[f"centers_{owners[m]}_{level}"] for m, level in keys}, instances)
    leaves = {key: inputs["x_{}_{}".format(*key)].detach().clone().requires_grad_() for key in keys}
    x = [Embeddings(leaves[m, "deep"], leaves[m, "shallow"]) for m in MODALITIES]
    labels, rows = (
        [inputs[name] for name in names] for names in (("y_visible", "y_infrared"), ("visible_rows", "infrared_rows"))
    )
    losses = sdcl_losses(*x, *labels, *rows, step, settings, config)
    step.update_instances(*x, *rows)
    losses.total.backward()
    return {
        "loss": losses.total.detach(),
        **{f"grad/{m}_{level}": leaf.grad for (m, level), leaf in leaves.items()},
        **{name: memory.features for name, memory in memories.items()},
        **{f"instances_{m}_{level}": memory.features for (m, level), memory in instances.items()},
    }


def settings(dataset: str, epoch: int) -> dict[str, Any]:
    """G12: every setting of an epoch (from 0), by the config's own names and by the method page's."""
    config = PRESETS[dataset]
    at = config.at(epoch)
    homogeneous, heterogeneous = (w[at.stage - 1] for w in (config.homogeneous_weight, config.heterogeneous_weight))
    return {
        **vars(config),
        **vars(config.model),
        **vars(at),
        "dataset": dataset,
        "batch_size": config.batch_size,
        "lr": at.learning_rate,
        "momentum": at.cluster_momentum,
        "mu": at.cluster_momentum,
        "sgd_momentum": config.sgd_momentum,
        "tau": config.temperature,
        "eps_visible": config.eps,
        "eps_infrared": config.eps,
        "top_k": config.association_k,
        "w_homo": homogeneous,
        "w_hetero": heterogeneous,
        "homogeneous": int(at.homogeneous_weight > 0),
        "visible_to_infrared": int(at.visible_to_infrared_weight > 0),
        "infrared_to_visible": int(at.infrared_to_visible_weight > 0),
    }
