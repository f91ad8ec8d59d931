"""AML's published settings for each target, and those of a demo on drawn people."""

from __future__ import annotations

from pathlib import Path

from sdcl.aml.settings import Config, ModelConfig

__all__ = ["PRESETS"]

IMAGENET = ModelConfig(pretrained=Path("pretrained/resnet50-0676ba61.pth"))

PRESETS: dict[str, Config] = {
    "sysu": Config(dataset="sysu", data_dir=Path("data/sysu"), run_dir=Path("runs/aml-sysu"), model=IMAGENET),
    # Its training images have no identities to compare with.
    "sysu02": Config(
        dataset="sysu02", data_dir=Path("data/sysu02"), run_dir=Path("runs/aml-sysu02"), model=IMAGENET, truth=False
    ),
    "regdb": Config(
        dataset="regdb",
        data_dir=Path("data/regdb"),
        run_dir=Path("runs/aml-regdb"),
        model=IMAGENET,
        recluster_every=200,
    ),
    # A small ResNet on drawn people, for a laptop: the same code path, other sizes. Source people are drawn in visible
    # light, and their infrared views by another camera stand for the images that a diffusion model generated.
    "demo": Config(
        dataset="sysu",
        data_dir=Path("data/demo"),
        run_dir=Path("runs/aml-demo"),
        source_dir=Path("data/aml-demo-source"),
        model=ModelConfig(image_height=64, image_width=32, blocks=(1, 1, 1, 1), channels=8),
        galleries="seeded",
        published_counts=False,
        synthetic_seed=0,
        synthetic_size=(96, 48),  # as the other methods' demos draw them
        workers=0,
        embedding_batch=128,
        precision="fp32",
        crop_padding=2,
        instances=4,
        source_batch=32,
        target_batch=32,
        source_iterations=200,
        target_iterations=100,
        source_learning_rate=2e-3,
        target_learning_rate=3e-4,
        warmup_iterations=30,
        source_delay_iterations=120,
        target_delay_iterations=30,
        save_every=50,
        evaluate_every=50,
        clusters=45,
    ),
}
