"""The two-level network: one vision transformer, two patch embeddings, two heads (method page, section 1)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdcl.config import ModelConfig
from sdcl.models.statistics import frozen_running_statistics
from sdcl.models.stem import STEMS

__all__ = ["EmbeddingHead", "Embeddings", "SDCLModel", "class_token_output"]

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)


class Embeddings(NamedTuple):
    """Un-normalised embeddings of B images at both levels, [B, D] each."""

    deep: Tensor
    shallow: Tensor


class DepthBlock(Block):
    """A pre-norm transformer block whose two residual branches can be left out, image by image (stochastic depth).

    Which ones is an input, not drawn here: the result then does not depend on how a batch is cut over processes, GPUs
    and parts, nor on whether it is computed again in the backward pass.
    """

    def forward(self, x: Tensor, stays: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Tokens [B, N, D] to the same shape; stays: [B, 2] as `SDCLModel.draw_depth` makes them, None: all stay."""
        x = x + _kept(self.attn(self.norm1(x)), stays, 0)
        return x + _kept(self.mlp(self.norm2(x)), stays, 1)


def _kept(branch: Tensor, stays: Tensor | None, which: int) -> Tensor:
    return branch if stays is None else branch * stays[:, which, None, None].to(branch.dtype)


def class_token_output(block: Block, tokens: Tensor, stays: Tensor | None = None) -> Tensor:
    """The class token's row of `block(tokens, stays)`: [B, N, D] to [B, D].

    It computes no other row: keys and values come from all tokens, but query, projection and MLP from the class
    token alone, a sixth of the whole block's work. Nothing reads the other rows of a head's block.
    """
    attn: Any = block.attn                                  # its layers, which nn.Module does not type
    dim = tokens.shape[2]
    x = tokens[:, :1]
    y = block.norm1(tokens)
    query = F.linear(y[:, :1], attn.qkv.weight[:dim], attn.qkv.bias[:dim])                     # [B, 1, D]
    keys_values = F.linear(y, attn.qkv.weight[dim:], attn.qkv.bias[dim:])                      # [B, N, 2D]
    q = query.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)                              # [B, heads, 1, d]
    k, v = keys_values.unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, d]
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)              # [B, 1, D]
    x = x + _kept(attn.proj(attended), stays, 0)
    x = x + _kept(block.mlp(block.norm2(x)), stays, 1)
    return x[:, 0]


class EmbeddingHead(nn.Module):
    """A transformer block, LayerNorm and BatchNorm on the class token (method page, section 1, points 4 to 6).

    `forward` ends before the BatchNorm, so that each row is by itself; the model applies `bn` to the rows of the whole
    batch. The BatchNorm's weight is trained; its bias is 0 and frozen, so that embeddings stay centred.
    """

    def __init__(self, block: Block, dim: int) -> None:
        super().__init__()
        self.block = block
        self.norm = LayerNorm(dim)
        self.bn = nn.BatchNorm1d(dim)
        self.bn.bias.requires_grad_(False)

    def forward(self, tokens: Tensor, stays: Tensor | None = None) -> Tensor:
        """Tokens [B, N, D], the class token first, to what `bn` makes embeddings of, [B, D]; stays: [B, 2] or None."""
        return self.norm(class_token_output(self.block, tokens, stays))


def _forward_and_again(stem: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed stem: in the forward pass, and when it is computed again in the backward pass."""
    return nullcontext(), frozen_running_statistics(stem)


_checkpoint = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # layers draw no random numbers


class SDCLModel(nn.Module):
    """Visible and infrared images to deep and shallow embeddings (method page, section 1).

    A fresh instance has PyTorch's initial weights; `build_model` gives it its proper ones.

    Attributes:
        bn_replicas: in training, so many equal parts of each modality's rows, in batch order, are batch-normalised
            apart, part r of both modalities together, and the first part alone moves the running statistics: what
            DataParallel made of a batch on the published runs' two GPUs (section 9.6). 1: the whole batch.
        gradient_checkpointing: in training, keep only the inputs of stems and blocks and compute the rest again in the
            backward pass: much less memory for a third more time, equal gradients.
        accumulate: in training, the transformer takes the rows in so many parts, and computes each again in the
            backward pass, so that one part's activations are held at a time. BatchNorms see all their rows all the
            same, stems are computed again a replica at a time: equal gradients.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.bn_replicas = 1
        self.gradient_checkpointing = False
        self.accumulate = 1
        dim, rows, columns = config.dim, *config.grid

        def block() -> DepthBlock:
            return DepthBlock(dim, config.heads, config.mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)

        self.stem_visible = STEMS[config.stem](dim)
        self.stem_infrared = STEMS[config.stem](dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, dim))
        self.blocks = nn.ModuleList(block() for _ in range(config.depth - 1))
        self.deep_head = EmbeddingHead(block(), dim)
        self.shallow_head = EmbeddingHead(block(), dim)

    @property
    def dim(self) -> int:
        """D, the width of each embedding."""
        return self.config.dim

    def draw_depth(self, rows: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Which residual branches stay in training (stochastic depth): [rows, depth + 1, 2] float32 on the CPU, for the
        layers (blocks, deep head, shallow head) and their two branches (attention, MLP); None where all stay.

        A branch that is left out has 0, one that stays 1 / (the probability to stay), which falls linearly from 1 at
        the first block to 1 - drop_path at the heads (section 1, point 3). Drawn from torch's generator for the CPU, or
        from the one given, whatever the model's device.
        """
        if not self.config.drop_path:
            return None
        last = self.config.depth - 1
        depth = torch.tensor([*range(last), last, last], dtype=torch.float32)
        stay = (1 - self.config.drop_path * depth / last)[:, None].expand(rows, -1, 2)
        return torch.bernoulli(stay, generator=generator) / stay

    def forward(
        self, visible: Tensor | None = None, infrared: Tensor | None = None, stays: Tensor | None = None
    ) -> Embeddings:
        """Embeds one modality or both.

        Args:
            visible: normalised images [Bv, 3, H, W] of the configured size, or None.
            infrared: the same [Bi, 3, H, W], or None.
            stays: in training, which branches stay, [Bv + Bi, depth + 1, 2]; None: the model draws (`draw_depth`).

        Returns:
            deep and shallow [Bv + Bi, D], visible rows first, un-normalised.

        Raises:
            ValueError: both are None, images of another size, or too few for the batch-normalisation replicas.
        """
        pairs = ((self.stem_visible, visible), (self.stem_infrared, infrared))
        given = [(stem, self._by_replica(images)) for stem, images in pairs if images is not None]
        if not given:
            raise ValueError("the model needs visible images, infrared images, or both; it got neither")
        s = torch.cat([self._patches(stem, rows, r) for stem, parts in given for r, rows in enumerate(parts)])
        if self.training and stays is None:
            stays = self.draw_depth(len(s))
        stays = stays.to(s.device, non_blocking=True) if self.training and stays is not None else None
        deep, shallow = self._in_parts(s, stays)
        if not self.training:  # rows are independent of each other, and an exported program takes any number of them
            return Embeddings(self.deep_head.bn(deep), self.shallow_head.bn(shallow))
        sizes = [[len(rows) for rows in parts] for _, parts in given]
        return Embeddings(
            self._normalised(self.deep_head.bn, deep, sizes), self._normalised(self.shallow_head.bn, shallow, sizes)
        )

    def _by_replica(self, images: Tensor) -> tuple[Tensor, ...]:
        """A modality's images [B, 3, H, W], cut as DataParallel would scatter them."""
        expected = (3, self.config.image_height, self.config.image_width)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images have shape {tuple(images.shape)}; the model takes [B, *{expected}]")
        if not self.training:
            return (images,)
        replicas = self.bn_replicas
        parts = images.chunk(replicas)
        if len(parts) != replicas:
            raise ValueError(f"{len(images)} images cannot be split over {replicas} batch-normalisation replicas")
        return parts

    def _patches(self, stem: nn.Module, images: Tensor, replica: int) -> Tensor:
        """Patch tokens [B, P, D] of one replica's images. A stem's maps are the largest of all: one replica at a time,
        computed again in the backward pass where memory is short."""
        with frozen_running_statistics(stem, freeze=replica > 0):
            if not self.training or not (self.gradient_checkpointing or self.accumulate > 1):
                return stem(images)
            # Running statistics move in the forward pass alone.
            contexts = partial(_forward_and_again, stem)
            return _checkpoint(stem, images, context_fn=contexts)

    def _in_parts(self, s: Tensor, stays: Tensor | None) -> list[Tensor]:
        """`_class_tokens`, in `accumulate` parts of the rows."""
        if not self.training or self.accumulate == 1:
            return list(self._class_tokens(s, stays))
        patches = s.chunk(self.accumulate)
        kept = [None] * len(patches) if stays is None else stays.split([len(part) for part in patches])
        parts = [_checkpoint(self._class_tokens, *part) for part in zip(patches, kept, strict=True)]
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    def _class_tokens(self, s: Tensor, stays: Tensor | None) -> tuple[Tensor, Tensor]:
        """Patch tokens [B, P, D] to both heads' output before batch normalisation, [B, D] each; rows are independent of
        each other."""
        h = torch.cat([self.cls_token.expand(s.shape[0], -1, -1), s], dim=1) + self.pos_embed
        shallow_tokens = h[:, 1:]
        kept = [None] * (self.config.depth + 1) if stays is None else stays.unbind(1)
        for block, own in zip(self.blocks, kept, strict=False):
            h = self._layer(block, h, own)
        # Shallow: what the last block makes of the first patch tokens, under the class token that has seen all blocks.
        mixed = torch.cat([h[:, :1], shallow_tokens], dim=1)
        return self._layer(self.deep_head, h, kept[-2]), self._layer(self.shallow_head, mixed, kept[-1])

    def _layer(self, layer: nn.Module, tokens: Tensor, stays: Tensor | None) -> Tensor:
        if self.training and self.gradient_checkpointing:
            return _checkpoint(layer, tokens, stays)
        return layer(tokens, stays)

    def _normalised(self, bn: nn.Module, x: Tensor, sizes: list[list[int]]) -> Tensor:
        """Rows [B, D] through `bn`, those of a replica from all modalities together; sizes: a list a modality, of the
        replicas' rows."""
        parts = iter(x.split([n for modality in sizes for n in modality]))
        replicas = zip(*([next(parts) for _ in modality] for modality in sizes), strict=True)
        out = []
        for replica, rows in enumerate(replicas):
            with frozen_running_statistics(bn, freeze=replica > 0):
                out.append(bn(torch.cat(rows)).split([len(part) for part in rows]))
        return torch.cat([part for modality in zip(*out, strict=True) for part in modality])

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights from torch's global generator, then `copy_branches`.

        Linear layers, class token and position embedding: normal, deviation 0.02, truncated; convolutions: Kaiming;
        biases 0; normalisations 1 and 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.copy_branches()

    def copy_branches(self) -> None:
        """Copies the visible stem to the infrared one, the deep head to the shallow one, BatchNorm1d afresh."""
        self.deep_head.bn.reset_parameters()
        self.stem_infrared.load_state_dict(self.stem_visible.state_dict())
        self.shallow_head.load_state_dict(self.deep_head.state_dict())
