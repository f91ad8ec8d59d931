"""The check of a machine's GPU: without one every part says why it is skipped; what commands print is in the report."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import check_gpu  # noqa: E402


def test_without_a_gpu_every_part_is_skipped_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = tmp_path / "report.md"
    assert check_gpu.main(["--output", str(report)]) == 0
    said, names = capsys.readouterr().out, list(check_gpu.parts(tmp_path))
    assert {"tests", "steps", "clustering", "input", "epoch"} < set(names)
    for name in names:
        assert f"{name}: skipped: no usable GPU: torch " in said
        assert f"| {name} | skipped: no usable GPU: torch " in report.read_text()
    assert f"- torch {torch.__version__}" in report.read_text()


@pytest.mark.slow
def test_parts_run_fail_and_end_in_time(tmp_path, monkeypatch, capsys):
    def python(code):
        return [sys.executable, "-c", code]

    made = {
        "good": check_gpu.Part("Good", [python("print('10 %\\r90 %'); print('done')")], 60),
        "bad": check_gpu.Part("Bad", [python("raise SystemExit(3)"), python("print('went on')")], 60),
        "slow": check_gpu.Part("Slow", [python("import time; print('began', flush=True); time.sleep(60)")], 3),
        "more": check_gpu.Part("More", [python("print('never')")], 60, gpus=2),
    }
    monkeypatch.setattr(check_gpu, "parts", lambda folder: made)
    monkeypatch.setattr(check_gpu, "gpu_trouble", lambda: None)
    monkeypatch.setattr(check_gpu, "machine", lambda: ["- a machine"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    report = tmp_path / "report.md"
    assert check_gpu.main(["--output", str(report)]) == 1
    text = report.read_text()
    assert "| good | ok |" in text and "\n90 %\ndone" in text and "\n10 %" not in text
    assert "| bad | FAILED: " in text and "status 3" in text and "went on" in text
    assert "| slow | FAILED: " in text and "not done within the part's 3 s" in text
    assert "| more | skipped: it needs 2 GPUs, there are 1 |" in text and "\nnever" not in text
    assert check_gpu.main(["good", "--output", str(report)]) == 0
    assert "bad" not in report.read_text()
    with pytest.raises(SystemExit):
        check_gpu.main(["nothing"])
    assert "there is no part nothing" in capsys.readouterr().err


def test_all_parts_fit_into_ten_minutes_on_one_gpu(tmp_path):
    assert sum(part.limit for part in check_gpu.parts(tmp_path).values() if part.gpus <= 1) <= 600
