"""The published settings, equal for both data sets, those for a folder of one's own, and a demo on drawn people."""

from __future__ import annotations

from pathlib import Path

from sdcl.pic.settings import PICConfig, PICModelConfig

__all__ = ["PRESETS"]

PUBLISHED = PICModelConfig(pretrained="pretrained/resnet50-19c8e357.pth")

PRESETS: dict[str, PICConfig] = {
    "sysu": PICConfig(dataset="sysu", data_dir=Path("data/sysu"), run_dir=Path("runs/pic-sysu"), model=PUBLISHED),
    "regdb": PICConfig(dataset="regdb", data_dir=Path("data/regdb"), run_dir=Path("runs/pic-regdb"), model=PUBLISHED),
    "folder": PICConfig(
        dataset="folder",
        data_dir=Path("data/mine"),
        run_dir=Path("runs/pic-mine"),
        published_counts=False,
        model=PUBLISHED,
    ),
    # The drawn people of SDCL's demo and a narrow ResNet from random weights, minutes on two cores. Such a network
    # learns all it knows here, so that its learning rate is larger and its mean branches follow faster.
    "demo": PICConfig(
        dataset="sysu",
        data_dir=Path("data/demo"),
        run_dir=Path("runs/pic-demo"),
        published_counts=False,
        synthetic_seed=0,
        model=PICModelConfig(image_height=96, image_width=48, width=16, blocks=(1, 1, 1, 1)),
        workers=0,
        embedding_batch=128,
        crop_padding=3,
        epochs=9,
        learning_rate=1e-3,
        mean_momentum=0.98,
    ),
}
