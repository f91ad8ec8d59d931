"""The page for a method of one's own: its code is trained, stopped, resumed, tested, reported, compared and exported
as it stands, by the shared programs."""

import gc
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import test_sdcl
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.meters import Meters
from sdcl.frame.run_log import read_log

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = ["--synthetic-identities", "6", "4", "--synthetic-images", "4"]
TINY = [
    *PEOPLE, "--epochs", "2", "--steps", "3", "--clusters", "9", "--width", "4", "--no-tensorboard",
]  # fmt: skip


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "your-method.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The page's program, imported from a folder of its own; data and runs are there too."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "train_mine.py").write_text(code_blocks()[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "path", [*sys.path, str(ROOT / "scripts")])
        yield importlib.import_module("train_mine")
    sys.modules.pop("train_mine", None)


def log(folder: str) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(Path(folder) / "log.jsonl")]


def test_the_page_s_method_goes_through_the_whole_frame(mine, capsys) -> None:
    mine.main(["demo", *TINY, "--run-dir", "runs/whole"])
    assert "best" in capsys.readouterr().out

    # Stopped in the second epoch, it goes on to the same bits.
    with pytest.MonkeyPatch.context() as patch:
        add = Meters.add

        def stop(meters: Meters, *losses) -> None:
            if meters.epoch == 1 and meters.done == 1:
                raise KeyboardInterrupt
            add(meters, *losses)

        patch.setattr(Meters, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            mine.main(["demo", *TINY, "--run-dir", "runs/stopped"])
    gc.collect()  # the interrupted run's lock
    assert len(log("runs/stopped")) == 1
    mine.main(["demo", *TINY, "--run-dir", "runs/stopped", "--resume", "auto"])
    assert log("runs/stopped") == log("runs/whole") and len(log("runs/whole")) == 2
    whole, resumed = (read_checkpoint(Path("runs") / name / "last.pth") for name in ("whole", "stopped"))
    assert whole["method"] == "mine" and whole["model"].keys() == resumed["model"].keys()
    assert all(torch.equal(x, resumed["model"][name]) for name, x in whole["model"].items())

    # Its own numbers again, from the checkpoint alone.
    test_sdcl.main(["demo", "--checkpoint", "runs/whole/best.pth", *PEOPLE])
    tested, trained = (json.loads(Path("runs/whole", f).read_text()) for f in ("test-best.json", "results.json"))
    assert tested["all_search"] == trained["all_search"] and tested["method"] == "mine"

    for script, arguments in (
        ("report", ["runs/whole"]),
        ("compare", ["runs/whole", "runs/stopped", "--output", "both.png"]),
        ("export", ["embeddings", "--checkpoint", "runs/whole/best.pth", "--output", "mine.npz"]),
        ("export", ["model", "--checkpoint", "runs/whole/best.pth", "--output", "mine.pt2"]),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *arguments])
            importlib.import_module(script).main()
    page = Path("runs/whole/report.html").read_text()
    assert "My method" in page and "Ranked lists" in page
    assert "My method" in capsys.readouterr().out  # the comparison's column
    with np.load("mine.npz") as saved:
        assert saved["visible_embedding"].shape[1] == 32


def test_another_association_is_one_function() -> None:
    import sdcl.training.labels

    kept = sdcl.training.labels.associate
    try:
        scope: dict = {}
        exec(code_blocks()[1], scope)
        assert sdcl.training.labels.associate is scope["nearest_center"]
        infrared = torch.eye(4).repeat_interleave(3, 0)
        labels = torch.arange(4).repeat_interleave(3)
        found = sdcl.training.labels.associate(
            torch.eye(4), torch.eye(4), infrared, infrared, labels, 20, 5, search=None
        )
        assert found.tolist() == [0, 1, 2, 3]
    finally:
        sdcl.training.labels.associate = kept
