"""Devices and processes as a run meets them: no silent run on the CPU, more processes than GPUs, several machines."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_sets import TINY_RUN

from sdcl import distributed
from sdcl.config import PRESETS
from sdcl.errors import UserError
from sdcl.frame.cli import how_to_go_on

ROOT = Path(__file__).parent.parent
REAL, DRAWN = PRESETS["sysu"], PRESETS["demo"]


@pytest.fixture
def gpus(monkeypatch):
    """gpus(count, capability): what torch would say on a machine with so many GPUs."""

    def make(count, capability=(9, 0), built=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return make


def on(config, device):
    return dataclasses.replace(config, device=device)


def test_real_data_do_not_go_to_the_cpu_silently(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(distributed, "_driver", lambda: "NVIDIA driver 550.54")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError) as stopped:
        distributed.start(REAL)
    line = str(stopped.value)
    assert "\n" not in line and "--device cpu" in line
    assert "built for CUDA 13.2, NVIDIA driver 550.54, no device (CUDA_VISIBLE_DEVICES is '')" in line
    assert distributed.start(on(REAL, "cpu")) == distributed.start(DRAWN) == torch.device("cpu")
    with pytest.raises(UserError, match="no usable GPU"):
        distributed.start(on(DRAWN, "cuda"))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(UserError, match=r"is built without CUDA, .*, no device\. "):
        distributed.start(REAL)


@pytest.mark.parametrize("capability, built, works", [
    ((9, 0), ["sm_80", "sm_90"], True), ((8, 9), ["sm_80", "sm_90"], True), ((7, 0), ["sm_75", "sm_80"], False),
    ((12, 1), ["sm_90", "compute_90"], True), ((12, 0), ["sm_90a"], False), ((10, 3), ["sm_100"], True),
])  # fmt: skip
def test_cards_that_the_wheel_was_not_built_for(gpus, capability, built, works):
    gpus(1, capability, built)
    if works:
        assert distributed.gpu_trouble() is None
        assert distributed.start(REAL) == torch.device("cuda", 0)
        assert distributed.start(on(REAL, "cpu")) == torch.device("cpu")
    else:
        with pytest.raises(UserError, match=f"{', '.join(built)}, A card is sm_{capability[0]}{capability[1]}"):
            distributed.start(REAL)


def test_more_processes_than_gpus(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes on this machine, which has 2 GPU.*--nproc-per-node 2"):
        distributed.start(REAL)


@pytest.mark.parametrize("count, backend, device", [(2, "nccl", torch.device("cuda", 1)), (0, "gloo", None)])
def test_processes_wait_for_hours_and_know_their_gpu(gpus, monkeypatch, count, backend, device):
    gpus(count)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    started = {}
    monkeypatch.setattr(
        distributed.dist, "init_process_group", lambda backend, **how: started.update(how, backend=backend)
    )
    distributed.start(DRAWN)
    assert started["backend"] == backend and started["device_id"] == device
    assert started["timeout"].total_seconds() >= 3600


def test_the_device_is_no_part_of_the_result():
    assert not on(REAL, "cpu").differences(REAL)


def test_how_to_go_on_on_several_machines(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train_sdcl.py", "sysu", "--seed", "2"])
    places = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0",
              "MASTER_ADDR": "node0"}  # fmt: skip
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    assert how_to_go_on().endswith("torchrun --nproc-per-node 2 train_sdcl.py sysu --seed 2 --resume auto")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    assert how_to_go_on().endswith(
        "torchrun --nnodes 3 --node-rank 0 --master-addr node0 --nproc-per-node 2 train_sdcl.py sysu --seed 2 "
        "--resume auto"
    )


def two_machines(arguments, folder):
    """`torchrun --nnodes 2` of a process each, both here; status and output of each. `arguments(node)` are its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for node in range(2):
        place = ["--nnodes", "2", "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", port]
        command = [sys.executable, "-m", "torch.distributed.run", *place, "train_sdcl.py", *arguments(node)]
        log = open(folder / f"node{node}.txt", "w")  # noqa: SIM115 - until the process ends
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return [(p.wait(timeout=600), (folder / f"node{n}.txt").read_text()) for n, p in enumerate(started)]


@pytest.mark.slow
def test_two_machines_with_separate_run_folders_are_told(tmp_path):
    def arguments(node):
        return [*TINY_RUN, "--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / f"run{node}")]

    outcomes = two_machines(arguments, tmp_path)
    for status, said in outcomes:
        assert status != 0
        assert said.count("is not one folder for all machines: processes 1 do not see") == 1, said


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_sdcl.py",
               "sysu", "--device", "cpu", "--eps", "7"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error: eps is 7") == 1, done.stderr


def test_an_error_of_one_process_is_printed_whichever_it_is(tmp_path, monkeypatch, capsys):
    from sdcl.errors import run_program

    def fail():
        raise UserError("only here")

    for process in range(2):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / str(process) / "error.json"))
        (tmp_path / "attempt_0").mkdir(exist_ok=True)
        with pytest.raises(SystemExit):
            run_program(fail)
        assert capsys.readouterr().err == ("error: only here\n" if process == 0 else "")
