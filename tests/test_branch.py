"""Stage 2 from the weights of a stage 1 that was trained elsewhere (`--stage1`)."""

import json
import re
import shutil

import pytest
import torch
from tiny_training import Runs, differences, in_process, settings

import train_sdcl
from sdcl.config import Config
from sdcl.frame.checkpoints import read_checkpoint, save_checkpoint
from sdcl.frame.method import load_network
from sdcl.models import save_published_format
from sdcl.training.method import METHOD

pytestmark = pytest.mark.slow

EPOCHS, STAGE2 = 3, 1
SCHEDULE = ["--epochs", str(EPOCHS), "--stage2-from", str(STAGE2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Drawn people, and `whole`, a run of both stages."""
    runs = Runs(tmp_path_factory.mktemp("branch"))
    runs.to_the_end("whole", *SCHEDULE)
    return runs


@pytest.fixture
def train(runs, capsys):
    def train(name, stage1, *options):
        folders = ["--data-dir", runs.data, "--run-dir", runs.folder / name]
        return in_process(capsys)("train", "demo", *settings(), *SCHEDULE, *folders, "--stage1", stage1, *options)

    return train


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_a_branch_of_ones_own_run_repeats_its_stage_2(runs):
    """To the last bit: labels, optimiser, schedule, selection and results, from stage1.pth alone."""
    whole, branch = runs.folder / "whole", runs.folder / "branch"
    shutil.copy(whole / "stage1.pth", runs.folder / "elsewhere.pth")
    runs.to_the_end("branch", *SCHEDULE, "--stage1", str(runs.folder / "elsewhere.pth"))
    assert "with its optimiser's state" in (runs.folder / "branch.txt").read_text()
    assert log_of(branch) == log_of(whole)[STAGE2:] and len(log_of(branch)) == EPOCHS - STAGE2
    a, b = (torch.load(folder / "last.pth", weights_only=True) for folder in (whole, branch))
    for name in ("model", "optimizer"):
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)
    a, b = (json.loads((folder / "results.json").read_text()) for folder in (whole, branch))
    for name in ("all_search", "indoor_search", "last", "stage1", "chance"):
        assert a[name] == b[name]
    assert b["start"] == b["stage1"], "the row before training is that of the weights it began with"


def test_other_options_may_follow(runs, train):
    assert train("smoother", runs.folder / "whole" / "stage1.pth", "--smooth-k", "3").status == 0
    assert [line["epoch"] for line in log_of(runs.folder / "smoother")] == list(range(STAGE2, EPOCHS))


def test_an_interrupted_branch_goes_on(runs, train, monkeypatch):
    stage1 = runs.folder / "whole" / "stage1.pth"

    def stop(*arguments):
        raise KeyboardInterrupt

    for name in ("in peace", "stopped"):
        with monkeypatch.context() as patch:
            if name == "stopped":
                patch.setattr(train_sdcl, "train_epoch", stop)
                assert train(name, stage1).status == 130
        assert train(name, stage1, "--resume", "auto").status == 0
    assert differences(runs.folder / "in peace", runs.folder / "stopped") == []


def test_from_a_published_checkpoint(runs, train):
    """It has no optimiser, and its Rank-1 is of data that nobody here has seen: the first epoch is selected."""
    stage1, path = runs.folder / "whole" / "stage1.pth", runs.folder / "published.pth"
    saved = read_checkpoint(stage1)
    network = load_network(METHOD, stage1, Config.from_json(saved["config"]))
    save_published_format(network, path, epoch=20, rank1=0.99)
    done = train("published", path)
    assert done.status == 0 and "with a fresh optimiser" in done.out, done.err
    folder = runs.folder / "published"
    assert json.loads((folder / "results.json").read_text())["epoch"] >= STAGE2
    kept = read_checkpoint(folder / "stage1.pth")
    torch.testing.assert_close(kept["model"], saved["model"], rtol=0, atol=0)
    lines, own = log_of(folder), log_of(runs.folder / "whole")[STAGE2:]
    assert lines[0]["visible_clusters"] == own[0]["visible_clusters"], "the first labels follow from the weights alone"


def test_a_dry_run_counts_stage_2_alone(runs, train):
    done = train("rehearsed", runs.folder / "whole" / "stage1.pth", "--dry-run")
    assert done.status == 0 and "stage 2" in done.out and "stage 1" not in done.out.split("phase")[-1]


def changed(runs, **values):
    path = runs.folder / "changed.pth"
    save_checkpoint(path, {**read_checkpoint(runs.folder / "whole" / "stage1.pth"), **values})
    return path


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda runs: runs.folder / "none.pth", (), "no weight file at"),
        (lambda runs: runs.folder / "whole" / "last.pth", (), f"is of epoch {EPOCHS - 1}, in stage 2 of its run"),
        (lambda runs: changed(runs, method="pic"), (), r"another method \(pic\)"),
        (lambda runs: changed(runs, trial=3), (), "is of trial 3, not 0"),
        (lambda runs: runs.folder / "whole" / "stage1.pth", ("--dim", "16"), "does not fit the model"),
        (lambda runs: runs.folder / "whole" / "stage1.pth", ("--no-cra",), "these settings have none"),
        (lambda runs: runs.folder / "whole" / "stage1.pth", ("--epochs", "1"), "these settings have none"),
    ],
)
def test_what_cannot_begin_stage_2_is_refused(runs, train, make, options, message, request):
    error = train(f"refused-{request.node.callspec.indices['make']}", make(runs), *options).error
    assert re.search(message, error), error
