"""Batch statistics of the published two-GPU runs, on any number of processes and GPUs (method page, section 9.6).

Those runs split each batch over 2 GPUs: replica 0 normalised [all view-1 rows + first infrared half], replica 1
[all view-2 rows + second half], for every BatchNorm, and replica 0's running statistics alone survived. It affects
what is learned, so it is a setting here (`SDCLModel.bn_replicas` does the splitting).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdcl import distributed
from sdcl.errors import UserError
from sdcl.models import Embeddings, SDCLModel

__all__ = ["ReplicaForward"]


class _Network(nn.Module):
    """What runs on one GPU: the model, within autocast. It is entered here since its dtype holds for one thread alone,
    and DataParallel has threads of its own, in which it would be float16."""

    def __init__(self, model: SDCLModel, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(
        self, visible: Tensor, infrared: Tensor, stays: tuple[Tensor, Tensor] | None
    ) -> tuple[Embeddings, Embeddings]:
        """Embeddings of both modalities apart, so that DataParallel's joined outputs are in batch order."""
        with distributed.autocast(visible.device, self.precision):
            out = self.model(visible, infrared, None if stays is None else torch.cat(stays))
        sizes = [len(visible), len(infrared)]
        (visible_deep, infrared_deep), (visible_shallow, infrared_shallow) = (x.float().split(sizes) for x in out)
        return Embeddings(visible_deep, visible_shallow), Embeddings(infrared_deep, infrared_shallow)


class ReplicaForward:
    """The model over its batch-normalisation replicas, on however many processes and GPUs there are.

    P processes take equal consecutive parts of the batch: several replicas each, or one, or (P a multiple of the
    replicas, on GPUs) a part of one with statistics exchanged among those that share it. A single process gives each
    replica a GPU through DataParallel, as the published runs did, or takes all replicas in one pass.

    Args:
        model: on this process's device; BatchNorms may be replaced by synchronised ones, so make the optimiser
            afterwards.
        replicas: of the whole batch.
        precision: "bf16" for autocast; embeddings come out as float32 always.
        parallel: "auto" for DataParallel where a single process has a GPU for each of several replicas, "dp" to demand
            it, "none" for no more than one GPU a process.

    Raises:
        UserError: the number of processes does not go with the number of replicas, or "dp" is impossible.
    """

    def __init__(self, model: SDCLModel, replicas: int, precision: str = "fp32", parallel: str = "auto") -> None:
        self.share = distributed.world()  # processes or GPUs that a step's rows are spread over
        self.device = model.cls_token.device
        processes = distributed.world()
        shared = processes > replicas and processes % replicas == 0
        if shared and self.device.type == "cuda":
            groups = [
                torch.distributed.new_group(list(range(g, g + processes // replicas)))
                for g in range(0, processes, processes // replicas)
            ]
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model, groups[distributed.rank() * replicas // processes])
        elif replicas % processes:
            raise UserError(
                f"{processes} processes do not go with --bn-replicas {replicas}: their number must divide it"
                + (", or be a multiple of it on GPUs" if shared else " or be a multiple of it")
                + f". Start torchrun with --nproc-per-node {replicas}"
            )
        gpus = torch.cuda.device_count() if self.device.type == "cuda" else 0
        possible = processes == 1 and 1 < replicas <= gpus
        if parallel == "dp" and not possible:
            raise UserError(
                "--parallel dp needs one process, --bn-replicas 2 or more, and a GPU for each replica; there are "
                f"{processes} process(es), {replicas} replica(s) and {gpus} GPU(s). --parallel none uses one GPU"
            )
        self.model = model
        self.network: nn.Module = _Network(model, precision)
        if possible and parallel != "none":
            self.network = nn.DataParallel(self.network, device_ids=list(range(replicas)))
            model.bn_replicas = 1  # of each GPU's copy
            self.share = replicas
        else:
            model.bn_replicas = max(1, replicas // processes)

    def __call__(
        self, visible: Tensor, infrared: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Embeddings, Embeddings]:
        """Embeddings of the whole batch from this process's part of it.

        Args:
            visible: images [2b/P, 3, H, W], this process's part of [view 1 of all; view 2 of all].
            infrared: images [b/P, 3, H, W].
            generator: what stochastic depth is drawn from, on the CPU, in the same state on every process; None:
                torch's own.

        Returns:
            visible deep and shallow [2b, D], infrared deep and shallow [b, D], float32, in batch order.
        """
        stays = self._draw_depth([len(visible), len(infrared)], generator)
        both = self.network(visible, infrared, stays)
        return tuple(Embeddings(*map(distributed.gather_rows, x)) for x in both)  # type: ignore[return-value]

    def _draw_depth(self, rows: list[int], generator: torch.Generator | None) -> tuple[Tensor, Tensor] | None:
        """Which branches stay for this process's rows of each modality. Every process draws for the whole batch, so
        that an image's draw follows from its place there, on any number of processes."""
        stays = []
        for n in rows:
            drawn = self.model.draw_depth(n * distributed.world(), generator) if self.model.training else None
            if drawn is None:
                return None
            stays.append(drawn[distributed.rank() * n :][:n].to(self.device, non_blocking=True))
        return stays[0], stays[1]
