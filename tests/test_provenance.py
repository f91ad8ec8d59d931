"""What made a run: recorded in its folder and results, shown by report and comparison."""

import json
import platform
import shutil
import subprocess

import pytest
import torch
from tiny_training import Runs, in_process, settings

from scripts import compare
from sdcl.frame import provenance
from sdcl.report.run_files import read_run
from sdcl.report.sections import settings as settings_section

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("provenance"))
    runs.to_the_end("first", "--epochs", "2", "--stage2-from", "1")
    return runs


def entries(folder):
    return json.loads((folder / "provenance.json").read_text())["runs"]


def test_a_run_says_what_made_it(runs):
    (entry,) = entries(runs.folder / "first")
    assert entry.keys() == {"from_epoch", *provenance.DESCRIPTIONS}
    assert entry["python"] == platform.python_version() and entry["torch"] == torch.__version__
    assert (entry["seed"], entry["precision"], entry["processes"], entry["from_epoch"]) == (1, "fp32", 1, 0)
    assert len(entry["starting_weights"]) == 16
    assert entry["data"] == torch.load(runs.folder / "first" / "best.pth", weights_only=True)["fingerprint"]
    assert json.loads((runs.folder / "first" / "results.json").read_text())["provenance"] == [entry]


def test_another_seed_and_changed_code_are_pointed_out(runs, capsys, monkeypatch):
    """Compared runs show their differences; a run that goes on with other code has two entries."""
    train = in_process(capsys)
    folders = ["--data-dir", runs.data, "--run-dir", runs.folder / "second"]
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab")
    short = settings(seed=2, epochs=1, stage2_from=1)
    assert train("train", "demo", *short, *folders).status == 0
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789ab, modified")
    assert train("train", "demo", *short, *folders, "--epochs", 2, "--resume", "changed").status == 0
    first, second = entries(runs.folder / "second")
    assert (first["from_epoch"], second["from_epoch"]) == (0, 1)
    assert second == first | {"from_epoch": 1, "commit": "0123456789ab, modified"}
    assert first["starting_weights"] != entries(runs.folder / "first")[0]["starting_weights"]

    output = runs.folder / "figure.png"
    argv = ["compare.py", str(runs.folder / "first"), str(runs.folder / "second"), "--output", str(output)]
    monkeypatch.setattr("sys.argv", argv)
    compare.main()
    said = capsys.readouterr().out
    assert f"  seed: 1 ({runs.folder / 'first'}), 2 ({runs.folder / 'second'})" in said
    assert "0123456789ab, then 0123456789ab, modified" in said and "--seed 2 (was 1)" in said
    assert "starting weights: " in said and "  Python: " not in said

    page = settings_section(read_run(runs.folder / "second"), torch.device("cpu"))[2]
    assert "0123456789ab, then 0123456789ab, modified" in page and first["starting_weights"] in page


def test_a_run_of_an_older_version_goes_on_and_is_shown(runs, capsys):
    folder = runs.folder / "older"
    shutil.copytree(runs.folder / "first", folder)
    (folder / "provenance.json").unlink()
    assert read_run(folder).provenance == []
    longer = settings(data_dir=runs.data, run_dir=folder, epochs=3, stage2_from=1, resume="changed")
    assert in_process(capsys)("train", "demo", *longer).status == 0
    (entry,) = entries(folder)
    assert (entry["from_epoch"], entry["starting_weights"]) == (2, "unknown")


def test_the_commit_is_that_of_the_checkout(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert provenance.commit(tmp_path) is None
    provenance.commit.cache_clear()
    git("init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-qm", "a")
    head = git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert provenance.commit(tmp_path) == head
    provenance.commit.cache_clear()
    (tmp_path / "a.py").write_text("2\n")
    assert provenance.commit(tmp_path) == f"{head}, modified"
    provenance.commit.cache_clear()


def test_weights_hash_sees_every_number_and_no_order():
    state = {"b": torch.arange(4.0).reshape(2, 2), "a": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    whole = provenance.weights_hash(state)
    assert provenance.weights_hash(dict(reversed(state.items()))) == whole
    for change in ({"b": state["b"].reshape(4)}, {"a": torch.tensor(4)}, {"b": state["b"].double()}):
        assert provenance.weights_hash(state | change) != whole


def test_equal_gpus_are_counted():
    assert provenance.text(["H100", "H100", "A100"]) == "2 x H100, A100"
    assert provenance.text([]) == provenance.text(None) == "none"
