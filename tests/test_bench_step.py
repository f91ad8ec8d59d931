"""The benchmark of a training step on a tiny network: what it prints, and how it counts memory."""

import dataclasses
import sys
import weakref
from pathlib import Path

import pytest
import torch
from small_runs import MODEL

from sdcl.config import PRESETS
from sdcl.frame.peak_memory import PeakMemory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import bench_step  # noqa: E402


@pytest.mark.slow
def test_table(monkeypatch, capsys):
    tiny = dataclasses.replace(
        PRESETS["demo"], model=MODEL, identities=2, instances=4, embedding_batch=6, bn_replicas=2
    )
    monkeypatch.setitem(PRESETS, "demo", tiny)
    bench_step.main(["--preset", "demo", "--rounds", "1", "--peak-tflops", "0.5", "--ways", "plain", "bf16",
                     "channels-last", "accumulate-2"])  # fmt: skip
    out = capsys.readouterr().out
    assert "16 visible and 8 infrared images a step, 6 to embed" in out
    for phase in ("training step", "forward", "embedding"):
        rows = [line.split() for line in out.split(f"\n{phase}\n")[1].split("\n\n")[0].splitlines()]
        assert rows[0] == ["way", "ms", "speed", "images/s", "TFLOP/s", "MFU", "peak", "MB"]
        assert [row[0] for row in rows[1:]] == ["plain", "bf16", "channels-last", "accumulate-2"]
        assert rows[1][2] == "1.00x"
        for _, ms, speed, images, tflops, mfu, peak in rows[1:]:
            assert float(ms) > 0 and speed.endswith("x") and float(images) > 0 and float(peak) >= 0
            assert float(mfu[:-1]) / 100 == pytest.approx(float(tflops) / 0.5, abs=2e-3)


@pytest.mark.slow
def test_the_plain_form_and_the_others_compute_the_same():
    config = dataclasses.replace(PRESETS["demo"], model=MODEL, identities=2, instances=4, embedding_batch=4)
    device, results = torch.device("cpu"), {}
    for name in ("plain", "fp32", "channels-last", "checkpointing", "accumulate-2"):
        bench = bench_step.Bench(bench_step.WAYS[name], config, device)
        start = [p.detach().clone() for p in bench.model.parameters()]
        bench.step()
        results[name] = [p.detach() - q for p, q in zip(bench.model.parameters(), start, strict=True)]
    moved = max(float(x.abs().max()) for x in results["plain"])
    for name, weights in results.items():
        far = max(float((x - y).abs().max()) for x, y in zip(weights, results["plain"], strict=True))
        assert far < 1e-2 * moved, name


def test_peak_memory_counts_what_is_alive_at_one_time():
    kept = torch.ones(1000)
    with PeakMemory() as memory:
        for _ in range(3):
            x = torch.ones(500)  # 2 kB
            del x
        y = kept + 1  # 4 kB, a new one
        view = y[:10]
        kept.mul_(2)
    assert memory.peak == 4000 and memory.held == 4000
    del y, view
    assert memory.held == 0


@pytest.mark.parametrize("name, peak", [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
                                        ("NVIDIA A100-SXM4-80GB", 312)])  # fmt: skip
def test_peaks_by_name(name, peak):
    assert next(p for known, p in bench_step.PEAKS.items() if known in name)["bf16"] == peak


@pytest.mark.slow
def test_out_of_memory_is_a_row_and_one_network_is_there_at_a_time(monkeypatch):
    config = dataclasses.replace(PRESETS["demo"], model=MODEL, identities=2, instances=4, embedding_batch=4)
    there, real = weakref.WeakSet(), bench_step.Bench

    class Counted(real):
        def __init__(self, way, *args, **kwargs):
            assert not there, "another network is still there"
            if way.precision == "bf16":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            there.add(self)
            super().__init__(way, *args, **kwargs)

    monkeypatch.setattr(bench_step, "Bench", Counted)
    tables = bench_step.measured(config, ["bf16", "fp32", "accumulate-2"], torch.device("cpu"), 1, {}, 1)
    for rows in tables.values():
        assert rows[0] == ["bf16", "out of memory", *["-"] * 5]
        assert rows[1][2] == "1.00x" and float(rows[2][1]) > 0


def test_gpu_memory_is_the_gpus_and_clocks_wait(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.append(1))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: waits.append(0))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda *_: 123)
    gpu = torch.device("cuda")
    assert bench_step.peak_bytes(lambda: None, gpu) == 123 and waits == [0, 1]
    bench_step.seconds(lambda: waits.append(2), bench_step.WAYS["fp32"], gpu)
    assert waits[2:] == [1, 2, 1]
