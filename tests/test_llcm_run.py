"""SDCL on LLCM's layout: its preset trains and tests both directions on drawn people."""

import json

import pytest
from tiny_sets import TINY_RUN

import train_sdcl


@pytest.mark.slow
def test_the_preset_trains_and_tests_both_directions(tmp_path, capsys) -> None:
    tiny = ["llcm", *TINY_RUN[1:], "--synthetic-seed", "0", "--no-published-counts", "--heads", "2", "--no-cra"]
    tiny[tiny.index("--epochs") + 1] = "1"
    more = ["--workers", "0", "--data-dir", str(tmp_path / "llcm"), "--run-dir", str(tmp_path / "run")]
    train_sdcl.main([*tiny, *more, "--no-tensorboard"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for mode in ("infrared_to_visible", "visible_to_infrared"):
        assert 0 < results[mode]["rank1"] <= 1 and results["chance"][mode]["rank20"] > 0.999  # five people
