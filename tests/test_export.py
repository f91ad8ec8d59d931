"""What is exported is what the run holds: embeddings, the next epoch's labels, the network, and the package itself."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import MODEL, draw_people, make_run
from tiny_training import ROOT, Runs, in_process, settings

import sdcl
from scripts import export
from sdcl.errors import UserError
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.export import export_model
from sdcl.models import build_model, load_checkpoint


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    people = draw_people(tmp_path_factory.mktemp("people"))
    return make_run(tmp_path_factory.mktemp("runs") / "small", people, epochs=4, stage2_from=2)


@pytest.fixture(scope="module")
def model(run_folder):
    model = build_model(MODEL)
    load_checkpoint(model, run_folder / "best.pth")
    return model.eval()


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["export.py", *map(str, arguments)])
    export.main()


@pytest.mark.slow
def test_embeddings_of_a_folder(run_folder, model, tmp_path, monkeypatch):
    images = tmp_path / "images"
    (images / "b").mkdir(parents=True)
    names = ["a.png", "b/c.jpg", "z.bmp"]
    for n, name in enumerate(names):
        noise = np.random.default_rng(n).integers(0, 256, (60, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / name)
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.png").write_text("no image")
    output = tmp_path / "mine.npz"
    arguments = ("embeddings", "--checkpoint", run_folder / "best.pth", "--images", images, "--modality", "infrared")
    call(monkeypatch, *arguments, "--output", output)
    with np.load(output) as saved:
        assert saved["paths"].tolist() == [str(images / name) for name in names]
        expected = sdcl.embed(model, saved["paths"].tolist(), "infrared")
        np.testing.assert_allclose(saved["deep"], expected.deep, atol=1e-5)
        np.testing.assert_allclose(saved["shallow"], expected.shallow, atol=1e-5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        call(monkeypatch, *arguments[:3], "--images", tmp_path / "empty", "--output", output)


def test_embeddings_of_the_test_set(run_folder, tmp_path, monkeypatch):
    output = tmp_path / "test"  # the name is kept as given
    call(monkeypatch, "embeddings", "--checkpoint", run_folder / "best.pth", "--output", output)
    with np.load(output) as saved:
        for modality, cameras in (("visible", {1, 2, 4, 5}), ("infrared", {3, 6})):
            n = len(saved[f"{modality}_paths"])
            assert saved[f"{modality}_deep"].shape == saved[f"{modality}_shallow"].shape == (n, MODEL.dim)
            assert set(saved[f"{modality}_cameras"].tolist()) == cameras
            assert len(saved[f"{modality}_identities"]) == n and len(set(saved[f"{modality}_identities"].tolist())) == 6


@pytest.mark.slow
def test_labels_are_the_next_epochs(tmp_path, capsys, monkeypatch):
    """Those of an epoch of stage 1, then those of the first one of stage 2, beside what the run then trains with."""
    runs, run = Runs(tmp_path), in_process(capsys)
    folder = tmp_path / "run"
    common = ("train", "demo", "--data-dir", runs.data, "--run-dir", folder, *settings(select="last"))
    assert run(*common, "--epochs", 1).status == 0
    for epoch in (1, 2):
        output = tmp_path / f"labels-{epoch}"
        call(monkeypatch, "labels", folder, "--output", output)
        found = {name: np.load(output / f"{name}.npy") for name in ("visible", "infrared", "visible_clusters")}
        assert run(*common, "--epochs", epoch + 1, "--resume", "changed").status == 0
        expected = json.loads((folder / "log.jsonl").read_text().splitlines()[epoch])
        assert expected["stage"] == epoch
        assert found["visible_clusters"].max() + 1 == expected["visible_clusters"]
        assert found["infrared"].max() + 1 == expected["infrared_clusters"]
        assert (found["infrared"] < 0).sum() == expected["infrared_outliers"]
        saved = read_checkpoint(folder / "last.pth")["labels"]
        for name, labels in found.items():
            np.testing.assert_array_equal(labels, saved[name].numpy())
        for modality in ("visible", "infrared"):
            paths = (output / f"{modality}.txt").read_text().splitlines()
            assert len(paths) == len(found[modality]) and paths == sorted(paths)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["visible", "infrared"])
def test_program_is_the_network(run_folder, model, modality, tmp_path, monkeypatch, capsys):
    output = tmp_path / "network.pt2"
    call(monkeypatch, "model", "--checkpoint", run_folder / "best.pth", "--modality", modality, "--output", output)
    assert "agrees with the network" in capsys.readouterr().out
    network = torch.export.load(output).module()
    images = torch.randn(3, 3, MODEL.image_height, MODEL.image_width)
    with torch.no_grad():
        deep, shallow = network(images)
        expected = model(**{modality: images})
    torch.testing.assert_close(deep, expected.deep, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shallow, expected.shallow, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None,
                    reason="the packages onnx and onnxscript are not installed")  # fmt: skip
def test_onnx_is_the_network(run_folder, tmp_path):
    assert export_model(run_folder / "best.pth", "visible", tmp_path / "network.onnx") < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]


def test_export_refuses(run_folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"must end in .pt2"):
        export_model(run_folder / "best.pth", "visible", tmp_path / "network.bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="onnx, onnxscript not found"):
        export_model(run_folder / "best.pth", "visible", tmp_path / "network.onnx")


def test_a_network_that_differs_is_not_written(run_folder, tmp_path, monkeypatch):
    def wrong(network, images, path):
        path.write_bytes(b"x")
        return lambda batch: [2 * x for x in network(batch)]

    monkeypatch.setattr("sdcl.frame.export._write_program", wrong)
    with torch.no_grad(), pytest.raises(UserError, match="differs from the network"):
        export_model(run_folder / "best.pth", "visible", tmp_path / "network.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")
def test_the_wheel_holds_the_package_and_its_files(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    sources = tmp_path / "source"
    tracked = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    sources.mkdir()
    for file in tracked:
        (sources / file.name).write_bytes(file.read_bytes())
    (sources / "sdcl").symlink_to(ROOT / "sdcl")  # built elsewhere, so that the checkout stays clean
    done = subprocess.run([*command, "--wheel-dir", tmp_path, sources], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("sdcl-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = [p for kind in ("py", "csv", "css", "pth") for p in (ROOT / "sdcl").rglob(f"*.{kind}")]
    assert wanted and {str(p.relative_to(ROOT)) for p in wanted} <= names
