"""The shared programs on a CCLNet run: test, report, compare, export, dry run; conversion and the demo's weights."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cclnet_runs import SETTINGS, TINY, draw_people, program, write_clip
from cclnet_small import small_model

import test_sdcl
import train_cclnet
from sdcl.cclnet.handover import read_handover
from sdcl.cclnet.method import METHOD
from sdcl.cclnet.model import CCLNetModel, ImageNetwork
from sdcl.cclnet.report import chosen_rows, text_similarity
from sdcl.cclnet.weights import load_clip, load_published
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.method import load_network, method_of
from sdcl.report.page import write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import convert_cclnet  # noqa: E402
import pretrain_demo_clip  # noqa: E402

pytestmark = pytest.mark.slow

CONTRAST = PROMPT = 1


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with people, a CLIP file, and `run`, a finished run of an epoch a stage."""
    folder = tmp_path_factory.mktemp("cclnet-programs")
    draw_people(folder / "data")
    write_clip(folder / "clip.pth")
    program(folder)("run", "--contrast-epochs", CONTRAST, "--prompt-epochs", PROMPT)
    return folder


def table_of(place: Path, checkpoint: Path, *options: str) -> dict:
    output = place / "test.json"
    model = [*SETTINGS[SETTINGS.index("--image-height") : SETTINGS.index("--contrast-epochs")]]
    fixed = ["--device", "cpu", "--synthetic-seed", "None", "--workers", "0"]
    files = ["--checkpoint", str(checkpoint), "--data-dir", str(place / "data"), "--output", str(output)]
    test_sdcl.main(["demo", *files, *fixed, *options, *(model if options else [])])
    return json.loads(output.read_text())


def test_the_test_program_reads_own_and_published_checkpoints(place):
    results = json.loads((place / "run" / "results.json").read_text())
    assert method_of(place / "run" / "best.pth") is METHOD
    assert table_of(place, place / "run" / "best.pth")["all_search"] == results["all_search"]
    done = convert_cclnet.convert(place / "run", place / "published.pth")
    assert "tensors in the published format" in done
    assert table_of(place, place / "published.pth", "--method", "cclnet")["all_search"] == results["all_search"]


def test_a_converted_run_holds_its_sentences(place):
    convert_cclnet.convert(place / "run", place / "published.pth")
    model = CCLNetModel(TINY)
    load_published(model, place / "published.pth")
    handed = read_handover(place / "run" / "prompts.pth")
    for m, texts in handed.texts.items():
        assert torch.equal(model.language.sentences(m).context, handed.contexts[m])
        torch.testing.assert_close(model.language.all_texts(m), texts)
    file = torch.load(place / "published.pth", weights_only=False)
    best = read_checkpoint(place / "run" / "best.pth")
    assert file["epoch"] == best["epoch"] - CONTRAST - PROMPT + 1 and file["cmc"][0] == best["metrics"]["rank1"]


def test_report_shows_clusters_with_their_images(place):
    page = write_report(place / "run").read_text()
    assert "Clusters and their sentences" in page and "images shown find their own" in page
    section = page[page.index('id="sentences"') :]
    assert section.count("cluster ") > 4 and section.count("<img") > 20


def test_rows_to_show():
    labels = np.array([2, 0, 0, -1, 2, 1, 2, 2, 0])
    assert chosen_rows(labels, clusters=2, images=2) == {0: [1, 8], 2: [0, 7]}
    assert chosen_rows(labels, clusters=9, images=9) == {0: [1, 2, 8], 1: [5], 2: [0, 4, 6, 7]}
    assert text_similarity(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])).tolist() == pytest.approx(
        [0, 0.5**0.5, 0.5**0.5]
    )
    assert text_similarity(torch.ones(1, 3)).tolist() == [0]


def test_network_of_a_checkpoint_embeds_alone(place):
    config = METHOD.settings.from_json(read_checkpoint(place / "run" / "best.pth")["config"])
    network = load_network(METHOD, place / "run" / "best.pth", config).eval()
    assert isinstance(network, ImageNetwork)
    with torch.no_grad():
        features = METHOD.embed(network, torch.randn(2, 3, 32, 16), "infrared")["features"]
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


def test_dry_run(place, capsys):
    before = sorted(p.name for p in place.iterdir())
    program(place)("dry", "--dry-run")
    said = capsys.readouterr().out
    for phase in ("embed", "label", "train, stage 0", "learn sentences, stage 1", "train, stage 2", "final test"):
        assert phase in said
    assert sorted(p.name for p in place.iterdir()) == before


# -- the demo's weights -------------------------------------------------------------------------------------------


def test_the_demo_weights_fit_and_know_no_text(tmp_path):
    config = METHOD.presets["demo"]
    model = train_cclnet.initial_model(config, 0)
    assert torch.equal(model.image.stem_visible.conv1.weight, model.image.stem_infrared.conv1.weight)
    assert config.clip.stat().st_size < 2 * 2**20
    file = torch.load(config.clip, weights_only=True)
    assert all(name.startswith("visual.") for name in file)
    with torch.no_grad():
        assert model.image.eval()(visible=torch.randn(2, 3, 96, 48), project=True).projections.isfinite().all()


def test_pretrained_network_takes_the_normalisations_in():
    network = small_model().image.eval()
    norms = [torch.nn.BatchNorm1d(n, affine=False).eval() for n in (128, 12)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 3, 48, 32)
    with torch.no_grad():
        maps = network.trunk(network.stem_visible(x))
        features, projections = pretrain_demo_clip.generalised_mean(maps), network.attnpool(maps)
        pretrain_demo_clip.absorb(network, *norms)
        maps = network.trunk(network.stem_visible(x))
        got = pretrain_demo_clip.generalised_mean(maps)
        scale = (norms[0].running_var + norms[0].eps).rsqrt()
        torch.testing.assert_close(got, features * scale, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.attnpool(maps), norms[1](projections), rtol=1e-3, atol=1e-4)


def test_the_demo_weights_program(tmp_path, monkeypatch):
    sizes = ["--identities", "2", "--images", "2", "--epochs", "1", "--batch", "8"]
    monkeypatch.setattr(sys, "argv", ["pretrain_demo_clip.py", "--output", str(tmp_path / "clip.pth"), *sizes])
    pretrain_demo_clip.main()
    model = CCLNetModel(METHOD.presets["demo"].model)
    before = model.image.trunk.layer1[0].conv1.weight.clone()
    load_clip(model, tmp_path / "clip.pth", text=False)
    assert not torch.equal(model.image.trunk.layer1[0].conv1.weight, before)
