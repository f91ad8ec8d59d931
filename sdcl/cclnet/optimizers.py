"""What each stage trains, and with which rates (CCLNet page, section 9)."""

from __future__ import annotations

from torch import nn
from torch.optim import Adam

from sdcl.cclnet.model import ImageNetwork, Language
from sdcl.cclnet.settings import Config

__all__ = ["contrast_optimizer", "prompt_optimizer", "set_learning_rate"]


def contrast_optimizer(network: ImageNetwork, config: Config) -> Adam:
    """Adam for stages 0 and 2, new in each: all of the network but the bias of its BatchNorm1d, which stays 0. Weight
    decay is added to the gradient; biases learn faster."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    biases, weights = ([p for name, p in trained if name.endswith("bias") == is_bias] for is_bias in (True, False))
    return _adam([(weights, 1.0), (biases, config.bias_factor)], config.learning_rate, config.weight_decay)


def prompt_optimizer(language: Language, config: Config) -> Adam:
    """Adam for stage 1: dense, so that sentences of clusters that a batch lacks move as well."""
    learned = [language.sentences(m).context for m in ("visible", "infrared")]
    return _adam([(learned, 1.0)], config.prompt_learning_rate, config.prompt_weight_decay)


def _adam(groups: list[tuple[list[nn.Parameter], float]], rate: float, weight_decay: float) -> Adam:
    optimizer = Adam([{"params": p, "lr_factor": factor} for p, factor in groups], rate, weight_decay=weight_decay)
    set_learning_rate(optimizer, rate)
    return optimizer


def set_learning_rate(optimizer: Adam, rate: float) -> None:
    """The rate of an epoch, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
