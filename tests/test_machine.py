"""Devices and processes as a run meets them: no silent run on the CPU, more processes than GPUs, several machines."""

import contextlib
import dataclasses
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.run as torchrun_program
from tiny_sets import TINY_RUN
from tiny_training import in_a_fork

import train_sdcl
from sdcl import distributed
from sdcl.config import PRESETS
from sdcl.errors import UserError, run_program
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


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_processes(function, folder):
    """Runs `function(rank, folder, port)` in two forks of this process."""
    torch.multiprocessing.start_processes(function, (folder, free_port()), nprocs=2, start_method="fork")


def join(rank, port):
    """Makes this process one of two, as torchrun would."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    torch.set_num_threads(1)


def torchrun(arguments, log, folder=ROOT):
    """`torchrun arguments…` in a folder, what it and its processes say in `log`. It is a fork of this process, which
    has imported what it needs; its processes are new ones."""

    def run():
        os.chdir(folder)
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        in_a_fork(log)
        torchrun_program.main(arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def two_machines(arguments, folder):
    """`torchrun --nnodes 2` of a process each, both here; status and output of each. `arguments(node)` are its own."""
    port, started = str(free_port()), []
    for node in range(2):
        place = ["--nnodes", "2", "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", port]
        started.append(torchrun([*place, "train_sdcl.py", *arguments(node)], folder / f"node{node}.txt"))
    for process in started:
        process.join(timeout=600)
    return [(p.exitcode, (folder / f"node{n}.txt").read_text()) for n, p in enumerate(started)]


def train_apart(rank, folder, port):
    """In one of two processes: a run in a folder of its own, as machines have that share no drive."""
    join(rank, port)
    places = ["--data-dir", str(folder / "data"), "--run-dir", str(folder / f"run{rank}")]
    with open(folder / f"said{rank}.txt", "w") as said, contextlib.redirect_stderr(said), pytest.raises(SystemExit):
        run_program(lambda: train_sdcl.main([*TINY_RUN, *places]))


@pytest.mark.slow
def test_two_machines_with_separate_run_folders_are_told(tmp_path):
    two_processes(train_apart, tmp_path)
    for rank in range(2):
        said = (tmp_path / f"said{rank}.txt").read_text()
        assert said.count("is not one folder for all machines: processes 1 do not see") == 1, said
        assert not (tmp_path / f"run{rank}" / "log.jsonl").exists()


@pytest.mark.slow
def test_an_error_of_all_processes_is_printed_once(tmp_path):
    """By torchrun's processes, of a program that starts faster than a training."""
    fail = "from sdcl.errors import UserError, run_program\n\ndef fail():\n    raise UserError('eps is 7')\n\n"
    (tmp_path / "fail.py").write_text(fail + "run_program(fail)\n")
    process = torchrun(["--standalone", "--nproc-per-node", "2", "fail.py"], tmp_path / "said.txt", tmp_path)
    process.join(timeout=300)
    assert process.exitcode and (tmp_path / "said.txt").read_text().count("error: eps is 7") == 1


def test_an_error_of_one_process_is_printed_whichever_it_is(tmp_path, monkeypatch, capsys):
    def fail():
        raise UserError("only here")

    for process in range(2):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / str(process) / "error.json"))
        (tmp_path / "attempt_0").mkdir(exist_ok=True)
        with pytest.raises(SystemExit):
            run_program(fail)
        assert capsys.readouterr().err == ("error: only here\n" if process == 0 else "")
