"""One training step of PIC, and its optimiser (docs/pic.md, "Training")."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Adam

from sdcl import distributed
from sdcl.pic.losses import pic_losses
from sdcl.pic.network import PICNetwork
from sdcl.pic.settings import PICConfig

__all__ = ["make_optimizer", "train_step"]


def make_optimizer(parameters: Iterable[nn.Parameter], config: PICConfig) -> Adam:
    """Adam over those of the parameters that are trained; weight decay is an L2 term in the gradient, on all of them,
    and the learning rate stays what it is."""
    trained = [p for p in parameters if p.requires_grad]
    return Adam(
        trained,
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=trained[0].device.type == "cuda",
    )


def train_step(
    network: PICNetwork,
    optimizer: Adam,
    visible: Tensor,
    infrared: Tensor,
    labels: Tensor,
    config: PICConfig,
    precision: str = "fp32",
) -> dict[str, Tensor]:
    """Mean branches move, both kinds of branches see the images, the losses are formed, the trained ones learn.

    Args:
        network: in training mode.
        visible, infrared: normalised images [m, 3, H, W] each; row r of both shows identity labels[r].
        labels: int64 [m], 0 … C−1, on the network's device.
        precision: "bf16" runs the network's convolutions in bfloat16; features, logits and losses are as precise as
            the weights.

    Returns:
        the losses as `pic_losses` names them, detached; nothing here waits for the device.
    """
    with distributed.autocast(visible.device, precision):
        of_visible, of_infrared = network(visible, infrared)
    losses = pic_losses(of_visible, of_infrared, labels, config)
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}
