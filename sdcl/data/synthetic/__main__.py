"""Write a synthetic data set as files: python -m sdcl.data.synthetic sysu data/synthetic"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from sdcl.data.synthetic import (
    SyntheticConfig,
    regdb_shape,
    sysu_shape,
    write_llcm_layout,
    write_regdb_layout,
    write_sysu_layout,
)
from sdcl.errors import UserError, run_program

_HELP = {
    "train_identities": "identities for training, at least 2",
    "test_identities": "identities for test",
    "images_per_camera": "images of an identity in a camera: one number, or the lowest and the highest (sysu layout)",
    "height": "pixels",
    "width": "pixels",
    "seed": "another seed draws other people and other cameras",
    "own_infrared": "0 = a garment's infrared brightness is a grey mixture of its colour, 1 = wholly its own",
    "absence": "probability that an identity is not seen by a camera (sysu layout)",
    "view_range": "0 = everybody from the front, 1 = from every side",
    "occlusion": "share of images with something before the person",
    "camera_strength": "how much cameras differ, 0 = not at all",
    "crop_jitter": "how loosely the boxes fit, 0 = exactly",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Raises UserError for impossible options and what the writing functions raise it for."""
    defaults = SyntheticConfig()
    parser = argparse.ArgumentParser(prog="python -m sdcl.data.synthetic", description=__doc__.split(":")[0])
    layouts = ("sysu", "regdb", "llcm")
    parser.add_argument("layout", choices=layouts, help="layout of the files: SYSU-MM01's, RegDB's or LLCM's")
    parser.add_argument("root", type=Path, help="folder to write to")
    parser.add_argument(
        "--published-shape",
        action="store_true",
        help="identities and image counts of the published set, by default of 32 x 16 pixels",
    )
    parser.add_argument("--workers", type=int, help="processes (default: one for each CPU core)")
    for field in fields(defaults):
        if field.name in _HELP:
            default = getattr(defaults, field.name)
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(default),
                nargs="+" if field.name == "images_per_camera" else None,
                metavar="N" if isinstance(default, int) else "X",
                help=f"{_HELP[field.name]} (default: {default})",
            )
    options = vars(parser.parse_args(arguments))
    try:
        config = _config(options)
    except ValueError as error:
        raise UserError(str(error)) from error
    write = {"sysu": write_sysu_layout, "regdb": write_regdb_layout, "llcm": write_llcm_layout}[options["layout"]]
    write(options["root"], config, options["workers"])
    print(f"{options['root']}: complete")


def _config(options: dict) -> SyntheticConfig:
    """The config that the options name: those given, over the defaults or the published shape."""
    given = {name: options[name] for name in _HELP if options[name] is not None}
    if "images_per_camera" in given:
        numbers = given["images_per_camera"]
        given["images_per_camera"] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    if not options["published_shape"]:
        return SyntheticConfig(**given)
    if options["layout"] == "llcm":
        raise UserError("--published-shape draws SYSU-MM01's or RegDB's; leave it out for LLCM's layout")
    for name in ("train_identities", "test_identities", "images_per_camera", "absence"):
        if name in given:
            raise UserError(f"--{name.replace('_', '-')} and --published-shape exclude each other; leave one out")
    return replace(sysu_shape() if options["layout"] == "sysu" else regdb_shape(), **given)


if __name__ == "__main__":
    run_program(main)
