"""A training step of PIC, whole, and the steps of an epoch (docs/pic.md, "Training")."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.optim import Adam

from sdcl import distributed
from sdcl.frame.embedding import device_of
from sdcl.frame.meters import Meters
from sdcl.pic.losses import pic_losses
from sdcl.pic.network import PICNetwork
from sdcl.pic.settings import PICConfig

__all__ = ["make_optimizer", "train_epoch", "train_step"]


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
    network: PICNetwork, optimizer: Adam, visible: Tensor, infrared: Tensor, labels: Tensor, config: PICConfig
) -> dict[str, Tensor]:
    """Mean branches move, both kinds of branches see the images, the losses are formed, the trained ones learn.

    Args:
        network: in training mode.
        visible, infrared: normalised images [m, 3, H, W] each; row r of both shows identity labels[r].
        labels: int64 [m], 0 … C−1, on the network's device.

    Returns:
        the losses as `pic_losses` names them, detached; nothing here waits for the device.
    """
    with distributed.autocast(visible.device, config.precision):
        of_visible, of_infrared = network(visible, infrared)
    losses = pic_losses(of_visible, of_infrared, labels, config)
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    optimizer.step()
    return {name: loss.detach() for name, loss in losses.items()}


def train_epoch(
    network: PICNetwork,
    optimizer: Adam,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    config: PICConfig,
    epoch: int,
    steps: int,
    progress: Callable[[int, dict[str, float]], object] | None = None,
) -> dict[str, float]:
    """Trains on each batch; returns the mean of the total ("loss") and of the four losses.

    Args:
        batches: `steps` times visible images, infrared images, labels, as `train_step` takes them, on any device.
        progress: called every few steps with the number of steps done and the means so far.

    Raises:
        UserError: the loss is not finite; the message names the terms. The network is then spoilt.
    """
    device = device_of(network)
    network.train()
    meters = Meters(epoch, steps, progress)
    for batch in batches:
        visible, infrared, labels = (x.to(device, non_blocking=True) for x in batch)
        losses = train_step(network, optimizer, visible, infrared, labels, config)
        meters.add(losses.pop("total"), losses)
    return meters.means
