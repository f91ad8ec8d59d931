"""Tiny CCLNet runs, in this process: what tests of whole runs share."""

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cclnet_small import clip_state, small_model
from tiny_training import Result

import train_cclnet
from sdcl.cclnet.presets import PRESETS
from sdcl.cclnet.settings import ClipConfig, Config
from sdcl.data.readers import sysu
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout
from sdcl.errors import run_program
from sdcl.frame.cli import how_to_go_on

TINY = ClipConfig(
    image_height=32, image_width=16, width=4, depths=(1, 1, 1, 1), projection=8,
    text_width=16, text_depth=1, text_heads=2,
)  # fmt: skip
CONTRAST, PROMPT = 2, 2
SETTINGS = (
    "demo --device cpu --synthetic-seed None --text clip --image-height 32 --image-width 16 --width 4 --depths 1 1 1 1 "
    f"--projection 8 --text-width 16 --text-depth 1 --text-heads 2 --contrast-epochs {CONTRAST} "
    f"--prompt-epochs {PROMPT} --identities 2 --instances 8 --min-samples 2 --k1 5 --k2 2 --eps 0.6 --mix-from 2 "
    "--warmup-epochs 1 --lr-steps 2 --test-every 1 --prompt-batch 32 --learning-rate 1e-4 --workers 0"
).split()
"""A network and a schedule that take a few seconds, with every part of the method in them."""


def tiny_presets() -> dict[str, Config]:
    """The presets with a network and a schedule that take a second, CLIP's file in pretrained/RN50.pt; everything else
    as published."""
    return {
        name: dataclasses.replace(
            preset,
            model=TINY,
            clip=PRESETS["sysu"].clip,
            text="clip",
            synthetic_identities=(4, 3),
            synthetic_images=4,
            workers=0,
            eps=0.6,
            instances=16,
            **dict.fromkeys(("contrast_epochs", "prompt_epochs", "warmup_epochs"), 1),
            **dict.fromkeys(("identities", "min_samples", "k2"), 2),
            k1=4,
        )
        for name, preset in PRESETS.items()
    }


def write_clip(path: Path) -> Path:
    """A CLIP file of the tiny shape."""
    torch.save(clip_state(small_model(config=TINY, seed=3), side=2), path)
    return path


def draw_people(folder: Path) -> Path:
    """Six training identities of eight visible and four infrared images, and three test identities, prepared."""
    write_sysu_layout(folder, SyntheticConfig(6, 3, images_per_camera=2, height=32, width=16, absence=0.0), workers=1,
                      progress=False)  # fmt: skip
    sysu.prepare(folder, progress=False)
    return folder


def program(folder: Path) -> Callable[..., None]:
    """A function that runs `train_cclnet.py` on the people and the CLIP file in `folder`, as a command line would."""

    def run(name: str, *options: object) -> None:
        gc.collect()  # a run that was stopped holds its folder's lock until its last frame is gone
        places = ["--data-dir", folder / "data", "--clip", folder / "clip.pth", "--run-dir", folder / name]
        train_cclnet.main([*SETTINGS, *map(str, places), *map(str, options)])

    return run


def result_of(run: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> Result:
    """How a run ended, with what it said."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_program(run, how_to_go_on)
    assert isinstance(stopped.value.code, int)
    return Result(stopped.value.code, *capsys.readouterr())
