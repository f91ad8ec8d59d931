"""The networks: images to features and projections, sentences to text vectors (CCLNet page, section 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdcl.cclnet.network import AttentionPool, Bottleneck, Stem, Trunk, generalised_mean
from sdcl.cclnet.settings import ClipConfig
from sdcl.cclnet.text import CausalAttention, Perceptron, Prompts, TextEncoder

__all__ = ["CCLNetModel", "ImageNetwork", "ImageVectors", "Language"]


class ImageVectors(NamedTuple):
    """What the image network makes of B images: features [B, 32·width] and, where asked for, projections [B, P]."""

    features: Tensor
    projections: Tensor | None


class ImageNetwork(nn.Module):
    """CLIP's ResNet for two kinds of images: a stem for each modality, everything after it shared.

    It is what stages 0 and 2 train and what tests use. A fresh instance has no useful weights: `sdcl.cclnet.weights`
    fills it from CLIP's file, `initialise` with random ones.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.stem_visible, self.stem_infrared = Stem(config.width), Stem(config.width)
        self.trunk = Trunk(config.width, config.depths)
        self.attnpool = AttentionPool(config.dim, config.grid, config.projection)
        self.bn = nn.BatchNorm1d(config.dim)
        self.bn.bias.requires_grad_(False)  # 0 for ever, so that features stay centred

    def forward(
        self, visible: Tensor | None = None, infrared: Tensor | None = None, *, project: bool = False
    ) -> ImageVectors:
        """Images of one modality or both to their vectors, visible rows first.

        Args:
            visible, infrared: normalised images [B, 3, H, W] of the configured size, or None.
            project: whether projections are wanted; attention pooling is left out without.

        Returns:
            features: un-normalised in training mode, of unit length in evaluation mode. projections: un-normalised.

        Raises:
            ValueError: no images, or of another size.
        """
        pairs = ((self.stem_visible, visible), (self.stem_infrared, infrared))
        stems = [stem(self._checked(images)) for stem, images in pairs if images is not None]
        if not stems:
            raise ValueError("the network needs visible images, infrared images, or both; it got neither")
        x = self.trunk(torch.cat(stems))  # [B, 32·width, H/16, W/16]
        features = self.bn(generalised_mean(x))
        if not self.training:
            features = F.normalize(features, dim=1)
        return ImageVectors(features, self.attnpool(x) if project else None)

    @property
    def convolutional(self) -> list[nn.Module]:
        """Both stems and the trunk, nearly all of the work: the parts that --compile compiles."""
        return [self.stem_visible, self.stem_infrared, self.trunk]

    def _checked(self, images: Tensor) -> Tensor:
        expected = (3, self.config.image_height, self.config.image_width)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"images have shape {tuple(images.shape)}; the network takes [B, *{expected}]")
        return images

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights from torch's global generator, scaled as CLIP's own start; both stems are equal.

        A block's last normalisation starts at weight 0, so that the residual network begins as its shortcuts.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
        pool, deviation = self.attnpool, self.config.dim**-0.5
        for layer in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(pool.positional_embedding, std=deviation)
        self.stem_infrared.load_state_dict(self.stem_visible.state_dict())


class Language(nn.Module):
    """The frozen text encoder, and the sentences of both modalities' clusters, of which stage 1 learns the middle.

    Args:
        visible_classes, infrared_classes: clusters that have a sentence.
    """

    def __init__(self, config: ClipConfig, visible_classes: int = 0, infrared_classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.text = TextEncoder(config.text_width, config.text_depth, config.text_heads, config.projection)
        classes = {"visible": visible_classes, "infrared": infrared_classes}
        self.prompts = nn.ModuleDict({m: Prompts(k, config.text_width) for m, k in classes.items()})

    def sentences(self, modality: str) -> Prompts:
        """The prompts of a modality."""
        prompts = self.prompts[modality]
        assert isinstance(prompts, Prompts)
        return prompts

    def texts(self, labels: Tensor, modality: str) -> Tensor:
        """Text vectors [B, P], un-normalised, of clusters [B] int64 of a modality; differentiable to its `context`."""
        clusters, places = labels.unique(return_inverse=True)  # equal labels have equal texts
        return self.text(self.prompts[modality](clusters))[places]

    @torch.no_grad()
    def all_texts(self, modality: str) -> Tensor:
        """Text vectors [K, P] of all clusters of a modality."""
        prompts = self.sentences(modality)
        return self.texts(torch.arange(len(prompts.context), device=prompts.context.device), modality)

    def restart(self, visible_classes: int, infrared_classes: int) -> None:
        """Fresh learned vectors for so many clusters, from torch's global generator."""
        self.sentences("visible").restart(visible_classes)
        self.sentences("infrared").restart(infrared_classes)

    @torch.no_grad()
    def initialise(self) -> None:
        """A random text encoder and random word embeddings, scaled as CLIP's own start; learned vectors are kept."""
        width = self.config.text_width
        inner = width**-0.5 * (2 * self.config.text_depth) ** -0.5
        for module in self.text.modules():
            if isinstance(module, CausalAttention):
                nn.init.normal_(module.in_proj_weight, std=width**-0.5)
                nn.init.normal_(module.out_proj.weight, std=inner)
                nn.init.zeros_(module.out_proj.bias)
            elif isinstance(module, Perceptron):
                nn.init.normal_(module.c_fc.weight, std=(2 * width) ** -0.5)
                nn.init.normal_(module.c_proj.weight, std=inner)
        nn.init.normal_(self.text.positional_embedding, std=0.01)
        nn.init.normal_(self.text.text_projection, std=width**-0.5)
        for prompts in (self.sentences("visible"), self.sentences("infrared")):
            nn.init.normal_(prompts.prefix, std=0.02)
            nn.init.normal_(prompts.suffix, std=0.02)


class CCLNetModel(nn.Module):
    """Both networks. They meet in the losses alone: `image`'s projections and `language`'s text vectors have one
    width."""

    def __init__(self, config: ClipConfig, visible_classes: int = 0, infrared_classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.image = ImageNetwork(config)
        self.language = Language(config, visible_classes, infrared_classes)
