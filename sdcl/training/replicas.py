"""Batch statistics of the published two-GPU runs, on one process (method page, section 9.6).

Those runs split each batch over 2 GPUs: replica 0 normalised [all view-1 rows + first infrared half], replica 1
[all view-2 rows + second half], for every BatchNorm, and replica 0's running statistics alone survived. It affects
what is learned, so it is a setting here that holds for any number of GPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdcl import distributed
from sdcl.errors import UserError
from sdcl.models import Embeddings, SDCLModel
from sdcl.models.statistics import frozen_running_statistics

__all__ = ["ReplicaForward", "forward_replicas"]


def forward_replicas(model: SDCLModel, visible: Tensor, infrared: Tensor, replicas: int) -> Embeddings:
    """One forward pass in which each replica batch-normalises its own rows; the first alone moves the running
    statistics.

    Rows are split as DataParallel scatters them (`torch.chunk`). Gradients of the replicas add up.

    Args:
        visible: images [2b, 3, H, W], view 1 of all, then view 2 in the same order (2 replicas: one view each).
        infrared: images [b, 3, H, W].
        replicas: 1 for statistics of the whole batch.

    Returns:
        deep and shallow [3b, D] in batch order, all visible rows first.

    Raises:
        ValueError: a modality cannot be split into that many parts.
    """
    parts = list(zip(visible.chunk(replicas), infrared.chunk(replicas), strict=False))
    if len(parts) != replicas or len(visible.chunk(replicas)) != len(infrared.chunk(replicas)):
        raise ValueError(
            f"{len(visible)} visible and {len(infrared)} infrared rows cannot be split over {replicas} "
            "batch-normalisation replicas"
        )
    outputs = []
    for index, (v, i) in enumerate(parts):
        with frozen_running_statistics(model, freeze=index > 0):
            outputs.append(model(visible=v, infrared=i))
    return _batch_order(
        Embeddings(*(torch.cat(level) for level in zip(*outputs, strict=True))), visible, infrared, replicas
    )


def _batch_order(out: Embeddings, visible: Tensor, infrared: Tensor, replicas: int) -> Embeddings:
    """Rows [visible and infrared of replica 0; of replica 1; …] as [all visible; all infrared]."""
    sizes = [len(x) for pair in zip(visible.chunk(replicas), infrared.chunk(replicas), strict=True) for x in pair]

    def ordered(level: Tensor) -> Tensor:
        parts = level.split(sizes)
        return torch.cat(parts[0::2] + parts[1::2])

    return Embeddings(*(ordered(level) for level in out))


class ReplicaForward:
    """The model over its batch-normalisation replicas, on however many processes and GPUs there are.

    P processes take equal consecutive parts of the batch: several replicas each, or one, or (P a multiple of the
    replicas, on GPUs) a part of one with statistics exchanged among those that share it. A single process gives each
    replica a GPU through DataParallel, as the published runs did, or has them follow one another.

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
        self.precision, self.device = precision, model.cls_token.device
        processes = distributed.world()
        self.own_replicas = max(1, replicas // processes)
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
        self.model = model
        self.over_gpus: nn.DataParallel[SDCLModel] | None = None
        gpus = torch.cuda.device_count() if self.device.type == "cuda" else 0
        possible = processes == 1 and 1 < replicas <= gpus
        if parallel == "dp" and not possible:
            raise UserError(
                "--parallel dp needs one process, --bn-replicas 2 or more, and a GPU for each replica; there are "
                f"{processes} process(es), {replicas} replica(s) and {gpus} GPU(s). --parallel none uses one GPU"
            )
        if possible and parallel != "none":
            self.over_gpus = nn.DataParallel(model, device_ids=list(range(replicas)))

    def __call__(self, visible: Tensor, infrared: Tensor) -> tuple[Embeddings, Embeddings]:
        """Embeddings of the whole batch from this process's part of it.

        Args:
            visible: images [2b/P, 3, H, W], this process's part of [view 1 of all; view 2 of all].
            infrared: images [b/P, 3, H, W].

        Returns:
            visible deep and shallow [2b, D], infrared deep and shallow [b, D], float32, in batch order.
        """
        with distributed.autocast(self.device, self.precision):
            if self.over_gpus is not None:
                out = _batch_order(
                    self.over_gpus(visible=visible, infrared=infrared), visible, infrared, self.own_replicas
                )
            else:
                out = forward_replicas(self.model, visible, infrared, self.own_replicas)
        gathered = [
            distributed.gather_rows(part.float())
            for level in out
            for part in level.split([len(visible), len(infrared)])
        ]
        return Embeddings(gathered[0], gathered[2]), Embeddings(gathered[1], gathered[3])
