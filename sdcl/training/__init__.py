"""Training: pseudo-labels, losses, steps, checkpoints; `train_sdcl.py` puts them together."""

from sdcl.training.labels import PseudoLabels, make_labels
from sdcl.training.losses import Memories, StepLosses, build_memories, sdcl_losses

__all__ = ["Memories", "PseudoLabels", "StepLosses", "build_memories", "make_labels", "sdcl_losses"]
