"""The two-level network: one vision transformer, two patch embeddings, two heads (method page, section 1)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdcl.config import ModelConfig
from sdcl.models.statistics import frozen_running_statistics
from sdcl.models.stem import ConvStem

__all__ = ["EmbeddingHead", "Embeddings", "SDCLModel", "class_token_output"]

LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)


class Embeddings(NamedTuple):
    """Un-normalised embeddings of B images at both levels, [B, D] each."""

    deep: Tensor
    shallow: Tensor


def class_token_output(block: Block, tokens: Tensor) -> Tensor:
    """The class token's row of `block(tokens)`: [B, N, D] to [B, D].

    It computes no other row: keys and values come from all tokens, but query, projection and MLP from the class
    token alone, a sixth of the whole block's work. Nothing reads the other rows of a head's block. Random numbers
    (stochastic depth) are drawn as the whole block would draw them.
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
    x = x + block.drop_path1(attn.proj(attended))
    x = x + block.drop_path2(block.mlp(block.norm2(x)))
    return x[:, 0]


class StochasticDepth(DropPath):
    """Leaves a residual branch out, row by row, with probability `drop_prob`, and divides the branches that stay by the
    probability to stay; in training only.

    That probability is a tensor here (not saved with the weights): compiled code then does not differ from block to
    block. timm's own is a number that is compiled in.
    """

    keep: Tensor

    def __init__(self, drop_prob: float) -> None:
        super().__init__(drop_prob)
        self.register_buffer("keep", torch.tensor(1.0 - drop_prob), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to the same shape."""
        if not self.training:
            return x
        stays = torch.bernoulli(self.keep.expand(len(x), 1, 1)) / self.keep
        return x * stays.to(x.dtype)


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

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, D], the class token first, to what `bn` makes embeddings of, [B, D]."""
        return self.norm(class_token_output(self.block, tokens))


def _forward_and_again(stem: ConvStem) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed stem: in the forward pass, and when it is computed again in the backward pass."""
    return nullcontext(), frozen_running_statistics(stem)


class SDCLModel(nn.Module):
    """Visible and infrared images to deep and shallow embeddings (method page, section 1).

    A fresh instance has PyTorch's initial weights; `build_model` gives it its proper ones. A batch that is passed in
    training mode is batch-normalised as a whole; `sdcl.training.replicas` splits it (section 9.6).

    Attributes:
        gradient_checkpointing: in training, keep only the inputs of stems and blocks and compute the rest again in the
            backward pass: much less memory for a third more time, equal gradients.
        accumulate: in training, the transformer takes the rows in so many parts, and computes each again in the
            backward pass, so that one part's activations are held at a time. BatchNorms see the whole batch all the
            same, stems are computed again as a whole: equal gradients.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.accumulate = 1
        dim, rows, columns = config.dim, *config.grid
        rates = torch.linspace(0, config.drop_path, config.depth).tolist()   # stochastic depth, growing with depth

        def block(index: int) -> Block:
            made = Block(dim, config.heads, config.mlp_ratio, qkv_bias=True, norm_layer=LayerNorm)
            if config.drop_path:
                made.drop_path1, made.drop_path2 = StochasticDepth(rates[index]), StochasticDepth(rates[index])
            return made

        self.stem_visible = ConvStem(dim)
        self.stem_infrared = ConvStem(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, dim))
        self.blocks = nn.ModuleList(block(i) for i in range(config.depth - 1))
        self.deep_head = EmbeddingHead(block(config.depth - 1), dim)
        self.shallow_head = EmbeddingHead(block(config.depth - 1), dim)

    @property
    def dim(self) -> int:
        """D, the width of each embedding."""
        return self.config.dim

    def forward(self, visible: Tensor | None = None, infrared: Tensor | None = None) -> Embeddings:
        """Embeds one modality or both.

        Args:
            visible: normalised images [Bv, 3, H, W] of the configured size, or None.
            infrared: the same [Bi, 3, H, W], or None.

        Returns:
            deep and shallow [Bv + Bi, D], visible rows first, un-normalised.

        Raises:
            ValueError: both are None, or images of another size.
        """
        pairs = ((self.stem_visible, visible), (self.stem_infrared, infrared))
        patches = [self._patches(stem, images) for stem, images in pairs if images is not None]
        if not patches:
            raise ValueError("the model needs visible images, infrared images, or both; it got neither")
        s = torch.cat(patches)                                                # [B, P, D]
        if self.training and self.accumulate > 1:
            parts = [checkpoint(self._class_tokens, part, use_reentrant=False) for part in s.chunk(self.accumulate)]
            deep, shallow = (torch.cat(level) for level in zip(*parts, strict=True))
        else:
            deep, shallow = self._class_tokens(s)
        return Embeddings(self.deep_head.bn(deep), self.shallow_head.bn(shallow))

    def _patches(self, stem: ConvStem, images: Tensor) -> Tensor:
        expected = (3, self.config.image_height, self.config.image_width)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images have shape {tuple(images.shape)}; the model takes [B, *{expected}]")
        if self.training and (self.gradient_checkpointing or self.accumulate > 1):
            # Running statistics move in the forward pass alone.
            contexts = partial(_forward_and_again, stem)
            return checkpoint(stem, images, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return stem(images)

    def _class_tokens(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens [B, P, D] to both heads' output before batch normalisation, [B, D] each; rows are independent of
        each other."""
        h = torch.cat([self.cls_token.expand(s.shape[0], -1, -1), s], dim=1) + self.pos_embed
        shallow_tokens = h[:, 1:]
        for block in self.blocks:
            h = self._layer(block, h)
        # Shallow: what the last block makes of the first patch tokens, under the class token that has seen all blocks.
        mixed = torch.cat([h[:, :1], shallow_tokens], dim=1)
        return self._layer(self.deep_head, h), self._layer(self.shallow_head, mixed)

    def _layer(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        if self.training and self.gradient_checkpointing:
            return checkpoint(layer, tokens, use_reentrant=False)
        return layer(tokens)

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
