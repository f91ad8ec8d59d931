"""The benchmark of tests: its plain ways give the results that they are compared with, and the table is printed."""

import dataclasses
import re

import numpy as np
import pytest
from small_runs import MODEL, draw_people
from test_evaluation import check, naive, problem

from scripts import bench_test
from sdcl.config import PRESETS


@pytest.mark.parametrize("seed", range(3))
def test_loop_equals_the_definition(seed):
    s, qi, gi, qc, gc = problem(seed, 60, 40, 30)
    check(bench_test.loop_metrics(s, qi, gi, qc, gc), naive(s, qi, gi, qc, gc))


@pytest.mark.slow
def test_table(tmp_path, monkeypatch, capsys):
    root = draw_people(tmp_path / "people")
    monkeypatch.setitem(PRESETS, "demo", dataclasses.replace(PRESETS["demo"], model=MODEL))
    sizes = ["--queries", "50", "--gallery", "120", "--trials", "2", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["bench_test.py", "--data-dir", str(root), *sizes])
    bench_test.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if " x" in line or "once" in line]
    # 6 identities of 2 images a camera: 24 queries; ten galleries of 24 and of 12 images, of 48 in all
    numbers = r" +\d+\.\d\d +\d+\.\d\d +\d+\.\dx +differ by \de[+-]\d\d"
    assert re.match(rf"embedding, 384 images in passes, 72 once{numbers}", lines[0])
    assert re.match(r"metrics, 50 queries x 120 gallery images x 2 trials .*x +differ by \de", lines[1])
    assert max(float(line.split()[-1]) for line in lines) < 1e-4
    assert float(re.search(r"([\d.]+)x ", lines[0])[1]) > 2, "five times fewer images"


def test_metrics_alone(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_test.py", "--identities", "0", "--queries", "30", "--rounds", "1"])
    bench_test.main()
    shown = capsys.readouterr().out
    assert "embedding" not in shown and "30 queries x 301 gallery images x 10 trials" in shown


def test_medians_of_alternating_rounds(monkeypatch):
    ticks, order = iter(np.cumsum([0, 5, 0, 1, 0, 7, 0, 2, 0, 6, 0, 9])), []
    monkeypatch.setattr(bench_test.time, "process_time", lambda: float(next(ticks)))
    assert bench_test.alternate(lambda: order.append("a"), lambda: order.append("b"), 3) == (6.0, 2.0)
    assert order == ["a", "b"] * 3
