"""Whole runs on a GPU: repeated to the bit, resumed to the bit, and spread over two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_sets import TINY_RUN

import train_sdcl

ROOT = Path(__file__).parents[2]
RUN = [*TINY_RUN, "--drop-path", "0.3", "--deterministic", "--workers", "0"]


def train(folder, name, device, *options):
    folders = ["--data-dir", str(folder / "data"), "--run-dir", str(folder / name)]
    train_sdcl.main([*RUN, *folders, "--device", device.type, *options])
    torch.use_deterministic_algorithms(False)
    return folder / name


def state(run):
    """The log without its times, and the last weights and optimiser."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    checkpoint = torch.load(run / "last.pth", map_location="cpu", weights_only=False)
    tensors = dict(checkpoint["model"])
    for number, values in checkpoint["optimizer"]["state"].items():
        tensors |= {f"optimizer {number} {k}": v for k, v in values.items() if isinstance(v, torch.Tensor)}
    return [{k: v for k, v in line.items() if k != "seconds"} for line in log], tensors


def same_bits(a, b):
    (log_a, tensors_a), (log_b, tensors_b) = state(a), state(b)
    assert log_a == log_b and tensors_a.keys() == tensors_b.keys()
    for name, x in tensors_a.items():
        assert torch.equal(x, tensors_b[name]), name


def test_deterministic_runs_are_equal_to_the_bit_and_so_is_a_resumed_one(gpu, tmp_path, monkeypatch):
    whole = train(tmp_path, "one", gpu)
    same_bits(whole, train(tmp_path, "two", gpu))

    real, epochs = train_sdcl.train_epoch, []

    def stop_in_the_second(*args, **kwargs):
        epochs.append(1)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(train_sdcl, "train_epoch", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "stopped", gpu)
    monkeypatch.setattr(train_sdcl, "train_epoch", real)
    same_bits(whole, train(tmp_path, "stopped", gpu, "--resume", "auto"))


def test_two_gpus_train_as_one(two_gpus, tmp_path):
    one = state(train(tmp_path, "one", two_gpus, "--parallel", "none"))
    by_dp = state(train(tmp_path, "dp", two_gpus, "--parallel", "dp"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_sdcl.py"]
    folders = ["--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "torchrun")]
    done = subprocess.run([*command, *RUN, *folders], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for log, tensors in (by_dp, state(tmp_path / "torchrun")):
        for line, want in zip(log, one[0], strict=True):
            assert line["loss"] == pytest.approx(want["loss"], rel=1e-3)
        for name, want in one[1].items():
            if not name.startswith("optimizer"):
                torch.testing.assert_close(tensors[name], want, rtol=1e-3, atol=1e-3, msg=name)
