"""CLIP's text transformer and the sentences that it reads (CCLNet page, section 1, "Texts").

The sentences "A visible photo of a X X X X person." and "An infrared photo of a X X X X person." never change, so their
token numbers stand here and no tokenizer is needed; X are four vectors that a cluster learns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CONTEXT_LENGTH", "LEARNED", "PREFIXES", "SUFFIX", "Prompts", "TextEncoder"]

CONTEXT_LENGTH = 77
"""Tokens of a padded text."""
LEARNED = 4
"""Learned vectors of a sentence."""
PREFIXES = {
    "visible": (49406, 320, 8626, 1125, 539, 320),  # start, "a visible photo of a"
    "infrared": (49406, 550, 22867, 1125, 539, 320),  # start, "an infrared photo of a"
}
"""Token numbers before the learned vectors, by modality."""
SUFFIX = (2533, 269, 49407)
"""Token numbers after them: "person", ".", end; then 0 up to `CONTEXT_LENGTH`."""


class Prompts(nn.Module):
    """The sentences of one modality's clusters.

    Args:
        classes: K, number of clusters. width: of a token's embedding.

    Attributes:
        context: [K, 4, width] parameter, the learned vectors.
        prefix: [1, 6, width] buffer, embeddings of `PREFIXES`.
        suffix: [1, 67, width] buffer, embeddings of `SUFFIX` and of the padding, which weight files hold.
    """

    prefix: Tensor
    suffix: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        before = len(PREFIXES["visible"])
        self.context = nn.Parameter(torch.empty(classes, LEARNED, width))
        self.register_buffer("prefix", torch.zeros(1, before, width))
        self.register_buffer("suffix", torch.zeros(1, CONTEXT_LENGTH - before - LEARNED, width))
        self.restart(classes)

    def restart(self, classes: int) -> None:
        """Fresh learned vectors for so many clusters, normal with deviation 0.02, from torch's global generator."""
        context = torch.empty(classes, LEARNED, self.prefix.shape[2], device=self.context.device)
        self.context = nn.Parameter(nn.init.normal_(context, std=0.02), self.context.requires_grad)

    def forward(self, labels: Tensor) -> Tensor:
        """Clusters [B] int64 to their sentences' embeddings [B, 13, width], the end token last.

        Attention is causal, so that the padding after the end token would change nothing.
        """
        learned, n = self.context[labels], len(labels)
        fixed = self.suffix[:, : len(SUFFIX)]
        return torch.cat([self.prefix.expand(n, -1, -1), learned, fixed.expand(n, -1, -1)], dim=1)


class CausalAttention(nn.Module):
    """Self-attention in which a token sees itself and those before it; weights named as in nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mapped = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # [B, L, 3·width]
        q, k, v = mapped.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two linear maps around CLIP's activation x·sigmoid(1.702x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        return self.c_proj(h * torch.sigmoid(1.702 * h))


class TextBlock(nn.Module):
    """A transformer block with its normalisations before attention and perceptron; [B, L, width] to the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = CausalAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Perceptron(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """The blocks alone, under the name that weight files give them."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(TextBlock(width, heads) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class TextEncoder(nn.Module):
    """Embedded sentences to text vectors, un-normalised. Frozen: prompts learn, the encoder never does."""

    def __init__(self, width: int, depth: int, heads: int, projection: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(CONTEXT_LENGTH, width))
        self.transformer = TextTransformer(width, depth, heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, projection))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width], the end token last, to [B, projection]."""
        x = self.transformer(x + self.positional_embedding[: x.shape[1]])
        return self.ln_final(x[:, -1]) @ self.text_projection
