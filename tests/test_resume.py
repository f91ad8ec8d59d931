"""A run that is killed, stopped or out of disk goes on, and ends as if nothing had happened."""

import builtins
import dataclasses
import errno
import fcntl
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import EPOCHS, ROOT, Moment, Runs, differences, in_process, read_curves, settings
from weight_files import SMALL

from sdcl.config import PRESETS
from sdcl.data.readers import regdb
from sdcl.data.sets import SETS
from sdcl.data.synthetic import SyntheticConfig, write_regdb_layout
from sdcl.errors import Terminated, UserError
from sdcl.files import write_atomically, write_json
from sdcl.frame import run as run_module
from sdcl.frame.checkpoints import pack, read_checkpoint, save_checkpoint
from sdcl.frame.cli import how_to_go_on
from sdcl.models import build_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A synthetic set, and `uninterrupted`, a run on it that was left in peace."""
    runs = Runs(tmp_path_factory.mktemp("runs"))
    runs.to_the_end("uninterrupted")
    return runs


# -- kills ------------------------------------------------------------------------------------------------------------


def test_a_run_killed_in_every_epoch_ends_as_an_uninterrupted_one(runs: Runs) -> None:
    """While last.pth is written, between last.pth and best.pth, on the way into stage 2, and at any time."""
    assert runs.killed("killed", Moment(1, "last.pth", "half")) == 1
    folder = runs.folder / "killed"
    assert not (folder / "last.pth").exists() and len(list(folder.glob(".last.pth.*.tmp"))) == 1
    assert runs.killed("killed", Moment(1, "best.pth", "before")) == 1
    assert not list(folder.glob(".last.pth.*")), "what killed writes left is cleared away"
    assert (folder / "last.pth").exists() and not (folder / "best.pth").exists()
    assert runs.killed("killed", Moment(2, "stage1.pth", "after")) == 2
    runs.killed("killed", Moment(2, delay=0.5))
    runs.to_the_end("killed")
    assert differences(runs.folder / "uninterrupted", folder) == []
    assert [event.step for event in read_curves(folder / "tensorboard").Scalars("loss/loss")] == list(range(EPOCHS))


def test_differences_are_seen(runs: Runs, tmp_path: Path) -> None:
    """The comparison that the test above rests on can fail."""
    copy = shutil.copytree(runs.folder / "uninterrupted", tmp_path / "copy")
    assert differences(runs.folder / "uninterrupted", copy) == []
    state = torch.load(copy / "last.pth", weights_only=True)
    state["optimizer"]["state"][0]["momentum_buffer"].view(-1)[0] += 1
    torch.save(state, copy / "last.pth")
    text = (copy / "log.jsonl").read_text()
    (copy / "log.jsonl").write_text(text.replace('"loss": ', '"loss": 1', 1))
    (copy / ".best.pth.1.tmp").touch()
    found = differences(runs.folder / "uninterrupted", copy)
    assert [re.split("[ .]", f.removeprefix("log.json"))[0] for f in found] == ["files", "last", "l:"]
    assert "momentum_buffer" in found[1] and "[0].loss" in found[2]


def test_two_runs_are_equal_with_any_number_of_workers_and_a_cache(runs: Runs) -> None:
    """--deterministic, on the CPU: equal logs and weights; --workers and --image-cache change nothing."""
    runs.to_the_end("again", "--deterministic", "--workers", "2", "--image-cache", str(runs.folder / "cache"))
    assert len(list((runs.folder / "cache").glob("*.npy"))) == 4
    found = differences(runs.folder / "uninterrupted", runs.folder / "again")
    settings = {re.sub(r"^[a-z1.]+: \.(config\.)?", "", f) for f in found}
    assert settings == {"deterministic", "workers", "image_cache"}


def test_a_killed_run_that_augments_on_the_device_ends_as_an_uninterrupted_one(runs: Runs) -> None:
    cache = str(runs.folder / "cache")
    options = ["--augment", "device", "--image-cache", cache, "--epochs", "2", "--stage2-from", "1"]
    runs.to_the_end("device", *options)
    first = [json.loads((runs.folder / name / "log.jsonl").open().readline()) for name in ("uninterrupted", "device")]
    assert first[0]["visible_clusters"] == first[1]["visible_clusters"] and first[0]["loss"] != first[1]["loss"]
    process = runs.start("device-again", *options, trap=Moment(1, "best.pth", "before"))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    runs.to_the_end("device-again", *options)
    assert differences(runs.folder / "device", runs.folder / "device-again") == []


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """here(options, **settings): train on the runs' set in this process, in folder `run`, for two epochs if not told
    otherwise."""
    program = in_process(capsys)

    def run(*options: object, **changes: object):
        base = {"data_dir": runs.data, "run_dir": tmp_path / "run", "epochs": 2}
        return program("train", "demo", *settings(**{**base, **changes}), *options)

    return run


def test_what_a_folder_with_a_run_in_it_allows(here, tmp_path: Path) -> None:
    assert "nothing to resume" in here("--resume").error
    assert here().status == 0
    log, results = ((tmp_path / "run" / name).read_text() for name in ("log.jsonl", "results.json"))

    assert "already holds a run. Go on with it: --resume auto" in here().error
    message = here("--resume", "auto", "--eps", "0.65", "--dim", "64").error
    assert "other settings: --dim 64 (was 32), --eps 0.65 (was 0.6)" in message and "--resume changed" in message

    os.utime(tmp_path / "run" / "results.json", ns=(0, 0))
    assert here(resume="auto").status == 0, "finished: nothing is trained or tested again"
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == 0
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    assert (tmp_path / "run" / "results.json").read_text() == results

    longer = here(resume="changed", epochs=3)
    assert longer.status == 0 and "other settings: --epochs 3 (was 2)" in longer.err
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "log.jsonl").read_text().startswith(log)
    assert (tmp_path / "run" / "results.json").read_text() != results
    assert "of another shape" in here(resume="changed", epochs=3, dim=64).error

    (tmp_path / "run" / "last.pth").unlink()
    assert "holds best.pth, but not the last.pth" in here(resume="auto").error


def test_a_run_does_not_go_on_with_other_data(here, runs: Runs, tmp_path: Path) -> None:
    data = shutil.copytree(runs.data, tmp_path / "data")
    assert here(data_dir=data, epochs=1).status == 0
    next((data / "rgb_modify" / "bounding_box_train").iterdir()).unlink()
    assert "training data are not those" in here(data_dir=data, epochs=1, resume="auto").error


def test_a_second_run_in_a_busy_folder_is_refused(here, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is training in" in here().error
    assert here(epochs=1).status == 0


@pytest.mark.parametrize("lost", ["optimizer", "best_epoch", "model", "config"])
def test_a_partial_last_checkpoint_is_refused(here, runs: Runs, tmp_path: Path, lost: str) -> None:
    (tmp_path / "run").mkdir()
    state = torch.load(runs.folder / "uninterrupted" / "last.pth", weights_only=True)
    torch.save({k: v for k, v in state.items() if k != lost}, tmp_path / "run" / "last.pth")
    assert f"only a part of a checkpoint: it lacks {lost}" in here(resume="auto", epochs=EPOCHS).error


def test_a_truncated_last_checkpoint_is_refused(here, runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    whole = (runs.folder / "uninterrupted" / "last.pth").read_bytes()
    (tmp_path / "run" / "last.pth").write_bytes(whole[: len(whole) // 2])
    assert "last.pth cannot be read" in here(resume="auto", epochs=EPOCHS).error


def test_regdb_goes_on_in_the_trial_where_it_stopped(tmp_path: Path, capsys, monkeypatch) -> None:
    """All trials, four here: finished ones are not trained again, whatever --resume says of those that have not
    begun."""
    monkeypatch.setitem(SETS, "regdb", dataclasses.replace(SETS["regdb"], trials=range(1, 5)))
    people = SyntheticConfig(4, 2, height=32, width=16)
    write_regdb_layout(tmp_path / "data", people, workers=1, progress=False)
    regdb.prepare(tmp_path / "data", progress=False)
    changes = {"data_dir": tmp_path / "data", "run_dir": tmp_path / "run", "epochs": 1, "steps_stage1": 1, "k1": 4}
    options = ["regdb", *settings(**changes), "--no-published-counts"]
    run = in_process(capsys)
    assert run("train", *options, "--trial", 1).status == 0
    first = (tmp_path / "run/trial-1/last.pth").stat().st_mtime_ns, (tmp_path / "run/trial-1/results.json").read_text()

    assert "trial-1 already holds a run" in run("train", *options).error
    assert run("train", *options, "--resume").status == 0
    assert first == ((tmp_path / "run/trial-1/last.pth").stat().st_mtime_ns,
                     (tmp_path / "run/trial-1/results.json").read_text())  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    parts = [json.loads((tmp_path / f"run/trial-{t}/results.json").read_text()) for t in range(1, 5)]
    assert results["trials"] == 4
    mean = sum(part["visible_to_thermal"]["mAP"] for part in parts) / 4
    assert results["visible_to_thermal"]["mAP"] == pytest.approx(mean)

    # The test program: all trials, one of them, and none of another trial's weights
    common = ["regdb", "--data-dir", tmp_path / "data", "--workers", 0]
    assert run("test", *common, "--checkpoint", tmp_path / "run").status == 0
    best = tmp_path / "run/trial-3/best.pth"
    right = run("test", *common, "--checkpoint", best, "--trial", 3)
    assert right.status == 0 and "warning" not in right.out
    assert run("test", *common, "--checkpoint", best).status == 0, "without --trial, the checkpoint's own"
    message = run("test", *common, "--checkpoint", best, "--trial", 4).error
    assert "was trained on RegDB's trial 3, not on RegDB's trial 4" in message and "regdb --trial 3" in message

    next((tmp_path / "data/rgb_modify/3/bounding_box_train").iterdir()).unlink()
    warned = run("test", *common, "--checkpoint", best, "--trial", 3)
    assert warned.status == 0 and "warning" in warned.out and "was trained on other images" in warned.out


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_the_command_that_goes_on(runs: Runs, number: int, status: int) -> None:
    """A real process, with workers, stopped in its second epoch or later; the command that it names finishes it."""
    name = f"stopped-{status}"
    folder = runs.folder / name
    options = [*settings(data_dir=runs.data, run_dir=folder, workers=1), "--resume", "never"]
    command = [sys.executable, str(ROOT / "train_sdcl.py"), "demo", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored where a shell runs the tests in background
    )
    while process.poll() is None and not (folder / "last.pth").exists():
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, out + err
    assert "Traceback" not in err and err.startswith("interrupted. Every finished epoch is safe; go on with: ")
    assert len(err.splitlines()) == 1
    going_on = shlex.split(err.partition("go on with: ")[2])
    assert going_on == [*command[:-2], "--resume", "auto"]
    read_checkpoint(folder / "last.pth", further={"optimizer": dict})
    if number == signal.SIGTERM:
        runs.to_the_end(name)  # the same options, in a process that starts faster
        found = differences(runs.folder / "uninterrupted", folder)
        assert {f.rpartition(".")[2] for f in found} <= {"workers"}


def test_how_to_go_on_under_torchrun(monkeypatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/v/python", "-u", "train_sdcl.py", "sysu", "--resume", "--seed", "2",
                                           "--run-dir", "my runs", "--resume=auto"])  # fmt: skip
    assert how_to_go_on().endswith("/v/python -u train_sdcl.py sysu --seed 2 --run-dir 'my runs' --resume auto")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "torchrun --nproc-per-node 2 train_sdcl.py sysu --seed 2" in how_to_go_on()


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_says_what_it_is(runs: Runs) -> None:
    best = read_checkpoint(runs.folder / "uninterrupted" / "best.pth")
    assert best["config"]["eps"] == 0.6 and best["config"]["model"]["dim"] == 32
    log = [json.loads(line) for line in (runs.folder / "uninterrupted" / "log.jsonl").read_text().splitlines()]
    highest = max(log, key=lambda line: line["all_search"]["rank1"])  # the first of them
    assert (best["method"], best["epoch"], best["trial"]) == ("sdcl", highest["epoch"], 0)
    assert len(best["fingerprint"]) == 16 and best["code_version"] and 0 < best["metrics"]["rank1"] < 1


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    """In a child whose files may not grow beyond a limit: as on a full disk, a write fails half way."""
    model = build_model(SMALL)
    packed = pack(model, PRESETS["demo"], method="sdcl", epoch=3, trial=0, fingerprint="f", metrics={})
    save_checkpoint(tmp_path / "last.pth", packed)
    before = (tmp_path / "last.pth").read_bytes()
    child = os.fork()
    if child == 0:
        size = len(before) // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        status = 0
        for write in (lambda: save_checkpoint(tmp_path / "last.pth", {**packed, "epoch": 4}),
                      lambda: write_json(tmp_path / "last.pth", "x" * len(before))):  # fmt: skip
            try:
                write()
            except UserError as error:
                line = str(error)
                status += "\n" not in line and "cannot write" in line and "last.pth" in line and "is whole" in line
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2, "both writes failed, with the message"
    assert (tmp_path / "last.pth").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Terminated])
def test_a_signal_while_a_checkpoint_is_written_is_no_failed_write(tmp_path: Path, interruption: type) -> None:
    """torch.save closes its archive after any exception, and raises another where the archive is short of bytes."""
    class Interrupted(io.FileIO):
        def write(self, data) -> int:
            if self.tell() > 1000:
                raise interruption
            return super().write(data)

    def write(temporary: Path) -> None:
        with Interrupted(temporary, "w") as file:
            torch.save({f"{n}": torch.zeros(1000) for n in range(10)}, file)

    with pytest.raises(interruption):
        write_atomically(tmp_path / "last.pth", write)
    assert not list(tmp_path.iterdir())


def test_failing_writes_in_a_run(here, monkeypatch, tmp_path: Path) -> None:
    """The disk fills up, or the folder becomes read-only, between two epochs."""
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert here(epochs=1).status == 0
    with monkeypatch.context() as patch:
        patch.setattr(run_module.os, "fsync", full)
        message = here(epochs=2, resume="changed").error
    assert "No space left on device" in message and "--resume auto" in message
    assert here(epochs=2, resume="changed").status == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]


def test_no_permission_to_write(tmp_path: Path, monkeypatch, here) -> None:
    """Simulated, since the superuser may write anywhere."""
    (tmp_path / "run").mkdir()
    real = builtins.open

    def guarded(path, mode="r", *rest, **more):
        if "w" in mode and str(path).startswith(str(tmp_path / "run")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", guarded)
        assert "cannot write to the run folder" in here().error
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/x.json: Not a directory"):
        write_atomically(tmp_path / "file" / "x.json", lambda p: p.write_text("1"))
