"""Every setting of a run and of the network, typed and in one place, and the presets that the programs start from."""

from sdcl.config.model import PATCH, ModelConfig
from sdcl.config.presets import PRESETS
from sdcl.config.settings import Config, EpochSettings

__all__ = ["PATCH", "PRESETS", "Config", "EpochSettings", "ModelConfig"]
