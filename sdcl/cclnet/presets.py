"""The published settings of SYSU-MM01, and this project's own for RegDB, a folder of one's own and the demo."""

from __future__ import annotations

from pathlib import Path

from sdcl.cclnet.settings import ClipConfig, Config

__all__ = ["PRESETS"]

DEMO_WEIGHTS = Path(__file__).parents[1] / "assets" / "demo_clip.pth"

PRESETS: dict[str, Config] = {
    "sysu": Config(dataset="sysu", data_dir=Path("data/sysu"), run_dir=Path("runs/cclnet-sysu")),
    # None were published: these are ours. RegDB's images of a person are ten and alike, as SDCL's settings for it say.
    "regdb": Config(dataset="regdb", data_dir=Path("data/regdb"), run_dir=Path("runs/cclnet-regdb"), eps=0.3),
    # SYSU-MM01's schedule, for want of a better guess.
    "folder": Config(
        dataset="folder", data_dir=Path("data/mine"), run_dir=Path("runs/cclnet-mine"), published_counts=False
    ),
    # A small network on the embedded synthetic set, for a laptop: the same code path, other sizes, and the schedule
    # compressed to end in minutes with its proportions kept.
    "demo": Config(
        dataset="sysu",
        data_dir=Path("data/demo"),
        run_dir=Path("runs/cclnet-demo"),
        published_counts=False,
        synthetic_seed=0,
        model=ClipConfig(
            image_height=96,
            image_width=48,
            width=8,
            depths=(1, 1, 1, 1),
            projection=128,
            text_width=64,
            text_depth=2,
            text_heads=2,
        ),
        clip=DEMO_WEIGHTS,
        text="random",
        workers=0,
        embedding_batch=128,
        crop_padding=3,
        eps=0.35,
        instances=8,
        contrast_epochs=4,
        warmup_epochs=1,
        lr_steps=(4,),
        mix_from=3,
        test_every=2,
        prompt_epochs=15,
        prompt_batch=64,
        prompt_learning_rate=1e-2,
    ),
}
