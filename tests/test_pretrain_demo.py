"""The program that makes the demo's initial weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import pretrain_demo  # noqa: E402

from sdcl.config import PRESETS  # noqa: E402
from sdcl.models import build_model, load_backbone  # noqa: E402


def test_loss_equals_the_loop() -> None:
    """Candidates of a row: its other view, and the views of other tracks; not those of its own track."""
    generator = torch.Generator().manual_seed(0)
    z, track = torch.randn(12, 5, generator=generator), torch.tensor([0, 1, 0, 2, 3, 1])
    x, tracks, total = F.normalize(z, dim=1), track.tolist() * 2, 0.0
    for row in range(12):
        partner = (row + 6) % 12
        candidates = [c for c in range(12) if c == partner or tracks[c] != tracks[row]]
        scores = torch.tensor([float(x[row] @ x[c]) / 0.1 for c in candidates])
        total += float(torch.logsumexp(scores, 0) - x[row] @ x[partner] / 0.1)
    assert float(pretrain_demo.discrimination_loss(z, track, 0.1)) == pytest.approx(total / 12, rel=1e-5)


def test_views_are_of_one_track_and_of_two_images() -> None:
    pictures = [np.full((8, 4, 3), n, np.uint8) for n in range(6)]
    views = pretrain_demo.Views(pictures, 3, lambda image: torch.tensor(float(np.asarray(image)[0, 0, 0])))
    torch.manual_seed(0)
    drawn = [{tuple(views[n][0].tolist()) for _ in range(30)} for n in range(6)]
    assert drawn[1] == {(1.0, 0.0), (1.0, 2.0)} and drawn[5] == {(5.0, 3.0), (5.0, 4.0)}
    assert [views[n][1] for n in range(6)] == [0, 0, 0, 1, 1, 1] and len(views) == 6


@pytest.mark.slow
def test_the_file_is_a_backbone(tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "backbone.pth"
    sizes = ["--identities", "2", "--images", "2", "--epochs", "1", "--batch", "8"]
    monkeypatch.setattr(sys, "argv", ["pretrain_demo.py", "--output", str(output), *sizes])
    pretrain_demo.main()
    model = build_model(type(PRESETS["demo"].model)(**{**vars(PRESETS["demo"].model), "pretrained": None}))
    before = model.blocks[0].mlp.fc1.weight.clone()
    report = load_backbone(model, output)
    assert not report.missing and not report.skipped and not torch.equal(model.blocks[0].mlp.fc1.weight, before)
