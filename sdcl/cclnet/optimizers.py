"""What each stage trains, and with which rates (CCLNet page, section 9)."""

from __future__ import annotations

from torch import nn
from torch.optim import Adam

from sdcl.cclnet.model import CCLNetModel
from sdcl.cclnet.settings import ContrastConfig, PromptConfig

__all__ = ["contrast_optimizer", "image_parameters", "prompt_optimizer", "set_learning_rate"]


def image_parameters(model: CCLNetModel) -> dict[str, nn.Parameter]:
    """The image network's trained parameters by name; its BatchNorm1d's bias stays 0 and is none of them."""
    frozen = ("text.", "prompts.")
    return {k: p for k, p in model.named_parameters() if not k.startswith(frozen) and k != "bn.bias"}


def contrast_optimizer(model: CCLNetModel, config: ContrastConfig) -> Adam:
    """Adam for stages 0 and 2, new in each; weight decay is added to the gradient, biases learn faster."""
    trained = image_parameters(model)
    groups = [
        {"params": [p for k, p in trained.items() if k.endswith("bias") == biases], "lr_factor": factor}
        for biases, factor in ((False, 1.0), (True, config.bias_factor))
    ]
    optimizer = Adam(groups, config.learning_rate, weight_decay=config.weight_decay)
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


def prompt_optimizer(model: CCLNetModel, config: PromptConfig) -> Adam:
    """Adam for stage 1: dense, so that sentences of clusters that a batch lacks move as well."""
    learned = [model.sentences(m).context for m in ("visible", "infrared")]
    return Adam([{"params": learned, "lr_factor": 1.0}], config.learning_rate, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: Adam, rate: float) -> None:
    """The rate of an epoch, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
