"""The report page: made from a small run, opened in a browser, its numbers against those of the test program."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from small_runs import draw_people, log_lines, make_run, random_features

from sdcl.config import ModelConfig
from sdcl.data.sets import SETS
from sdcl.errors import UserError
from sdcl.evaluation import sysu_metrics
from sdcl.frame import embedding_cache
from sdcl.frame.method import dot_products
from sdcl.frame.published import series
from sdcl.frame.retrieval import load_test_set
from sdcl.models import build_model
from sdcl.models.sdcl_model import class_token_output
from sdcl.report import figures, findings, write_report
from sdcl.report.run_files import read_run, run_folders
from sdcl.training.report import attention_maps, augmented_views, class_token_attention

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SECTIONS = ("curves", "results", "ranked", "distances", "tsne", "attention", "views", "settings")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return draw_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def run_folder(people, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "small", people, epochs=4, stage2_from=2)


@pytest.fixture(scope="module")
def report(run_folder):
    return write_report(run_folder)


@pytest.fixture
def no_figures_in_the_page(monkeypatch):
    """For tests of something else: drawing takes most of a report's time."""
    monkeypatch.setattr(figures, "data_uri", lambda *_: "")


@pytest.mark.slow
def test_page_is_whole_and_self_contained(report):
    text = report.read_text(encoding="utf-8")
    assert report.name == "report.html" and report.stat().st_size < 5e6
    for anchor in SECTIONS:
        assert f'<section id="{anchor}">' in text and f'href="#{anchor}"' in text
    assert "<script" not in text and "@import" not in text and "url(" not in text
    targets = re.findall(r'(?:src|href)="([^"]{0,20})', text)
    assert len(targets) > 100 and all(t.startswith(("data:", "#")) for t in targets)
    assert "60.00 <small>± 3.00</small>" in text  # the result table
    assert "last epoch" in text and "before training" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not opened in a browser")
@pytest.mark.slow
def test_page_in_a_browser(report, tmp_path):
    probe = (
        "<script>addEventListener('load', () => { const images = [...document.images];"
        "document.title = JSON.stringify([images.length, images.filter(i => !i.complete || !i.naturalWidth).length,"
        "document.documentElement.scrollWidth - innerWidth]); })</script></body>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(report.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--enable-logging=stderr", "--window-size=1200,900",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([CHROMIUM, *options, copy.as_uri()], capture_output=True, text=True, timeout=180)
    title = re.search(r"<title>(\[.*?\])</title>", done.stdout)
    assert title, done.stderr[-2000:]
    images, broken, overflow = json.loads(title[1])
    assert images > 100 and broken == 0 and overflow <= 0
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
def test_page_of_a_run_that_goes_on(people, tmp_path, no_figures_in_the_page):
    folder = make_run(tmp_path / "early", people, log_lines(1, 2), epochs=4)
    (folder / "results.json").unlink()
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"epoch": 1, "sta')
    assert len(read_run(folder).log) == 1
    text = write_report(folder).read_text(encoding="utf-8")
    assert "The run has not ended" in text and "1 of 4 epochs" in text


@pytest.mark.slow
def test_cached_features_are_used_again(people, tmp_path, monkeypatch, no_figures_in_the_page):
    folder = make_run(tmp_path / "cached", people, epochs=2)
    first = write_report(folder, cache_features=True).read_text(encoding="utf-8")
    monkeypatch.setattr(embedding_cache, "embed_test_set", lambda *_: pytest.fail("embedded again"))
    assert write_report(folder, cache_features=True).read_text(encoding="utf-8") == first
    packed = torch.load(folder / "best.pth", weights_only=True)
    torch.save(packed | {"epoch": 0}, folder / "best.pth")  # other weights: the cache is not theirs
    with pytest.raises(pytest.fail.Exception, match="embedded again"):
        write_report(folder, cache_features=True)


def test_what_is_no_run_is_said(people, tmp_path):
    with pytest.raises(UserError, match="is not a run folder: it holds no config.json"):
        read_run(tmp_path)
    folder = make_run(tmp_path / "run", people, lines=[], epochs=2)
    with pytest.raises(UserError, match="holds no epoch yet"):
        read_run(folder)
    (folder / "log.jsonl").write_text(json.dumps(log_lines(1, 2)[0]) + "\n")
    (folder / "best.pth").unlink()
    with pytest.raises(UserError, match="holds no best.pth"):
        write_report(folder)


def test_folders_of_trials(people, tmp_path):
    make_run(tmp_path / "regdb" / "trial-2", people)
    make_run(tmp_path / "regdb" / "trial-10", people)
    assert [f.name for f in run_folders(tmp_path / "regdb")] == ["trial-2", "trial-10"]
    assert run_folders(tmp_path / "regdb" / "trial-2") == [tmp_path / "regdb" / "trial-2"]


def test_published_curve_lies_behind_real_data_alone(people, tmp_path):
    drawn = read_run(make_run(tmp_path / "drawn", people))
    real = read_run(make_run(tmp_path / "real", people, synthetic_seed=None))

    def labels(run):
        return figures.retrieval_figure(run).axes[0].get_legend_handles_labels()[1]

    assert "published" not in labels(drawn) and labels(real).count("published") == 1
    line = next(x for x in figures.retrieval_figure(real).axes[0].lines if x.get_label() == "published")
    assert line.get_ydata()[38] == pytest.approx(65.29)


def test_series_reads_nested_and_missing_values():
    log = log_lines(4, 2)
    assert series(log, "association_accuracy") == ([2, 3], [0.75, 0.75])
    assert series(log, "all_search.mAP")[1][-1] == pytest.approx(0.6)
    assert series(log, "nothing") == ([], [])


def test_ranking_gives_the_tests_numbers(run_folder):
    test = load_test_set(read_run(run_folder).config)
    features = random_features(test)
    for task in test.tasks:
        ranking = findings.rank_gallery(test, task, features, SETS["sysu"], dot_products)
        gallery = task.galleries[0]
        similarity = features["infrared"][task.query[1]] @ features["visible"][gallery[1]].t()
        (q_ids, q_cams), (g_ids, g_cams) = test.of(task.query), test.of(gallery)
        expected = sysu_metrics(similarity, q_ids, g_ids, q_cams, g_cams)
        assert ranking.average_precision.mean() == pytest.approx(expected.mAP)
        best, worst = (ranking.lists(test, task, gallery[1], 3, 5, best=b) for b in (True, False))
        assert best[0].average_precision == ranking.average_precision.max()
        assert worst[0].average_precision == ranking.average_precision.min()
        assert len({x.query.identity for x in best}) == len(best) == 3
        for ranked in best + worst:
            assert all(right == (image.identity == ranked.query.identity) for image, right in ranked.top)
            assert ranked.query.camera != 3 or all(image.camera != 2 for image, _ in ranked.top)


def test_distances_against_loops():
    rng = np.random.default_rng(0)
    features = {
        m: torch.from_numpy(rng.normal(size=(n, 4)).astype(np.float32)) for m, n in (("visible", 9), ("infrared", 7))
    }
    ids = {m: rng.integers(0, 3, len(x)) for m, x in features.items()}
    found = findings.pair_distances(features, ids)

    def distance(a, b):
        return 1 - torch.cosine_similarity(a, b, dim=0).item()

    x, y = features["visible"], features["infrared"]
    within = [distance(x[i], x[j]) for i in range(9) for j in range(i) if ids["visible"][i] == ids["visible"][j]]
    across = [
        distance(a, b)
        for a, i in zip(x, ids["visible"], strict=True)
        for b, j in zip(y, ids["infrared"], strict=True)
        if i != j
    ]
    np.testing.assert_allclose(sorted(found["within visible"][0]), sorted(within), atol=1e-5)
    np.testing.assert_allclose(sorted(found["across"][1]), sorted(across), atol=1e-5)
    assert sum(map(len, found["within infrared"])) == 7 * 6 // 2


def test_separation_counts_pairs():
    positive, negative = np.array([0.1, 0.2, 0.4]), np.array([0.2, 0.3])
    wins = sum((p < n) + 0.5 * (p == n) for p in positive for n in negative)
    assert findings.separation(positive, negative) == pytest.approx(wins / 6)
    assert findings.separation(np.zeros(3), np.ones(3)) == 1.0


def test_attention_is_what_the_head_computes():
    model = build_model(ModelConfig(image_height=32, image_width=16, dim=12, depth=2, heads=3, drop_path=0.0)).eval()
    block, tokens = model.deep_head.block, torch.randn(2, 5, 12)
    with torch.no_grad():
        weights = class_token_attention(block, tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
        values = block.attn.qkv(block.norm1(tokens))[..., 24:].unflatten(2, (3, 4)).transpose(1, 2)  # [B, heads, N, d]
        x = tokens[:, 0] + block.attn.proj((weights[:, :, None] @ values)[:, :, 0].flatten(1))
        x = x + block.mlp(block.norm2(x))
        torch.testing.assert_close(x, class_token_output(block, tokens))


def test_attention_maps_are_distributions(run_folder):
    test = load_test_set(read_run(run_folder).config)
    model = build_model(ModelConfig(**read_run(run_folder).config.to_json()["model"] | {"pretrained": None}))
    maps = attention_maps(model, [(m, test.images[m][0]) for m in ("visible", "infrared")])
    assert [m.modality for m in maps] == ["visible", "infrared"]
    for item in maps:
        assert item.deep.shape == item.shallow.shape == (3, 2)
        assert item.deep.sum() == pytest.approx(1, abs=1e-5) and not np.allclose(item.deep, item.shallow)
    assert model.training and not model.deep_head._forward_pre_hooks


def test_views_repeat_and_leave_the_generator_alone(run_folder):
    config = read_run(run_folder).config
    records = load_test_set(config).images["visible"][:2]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = augmented_views(config, "visible", records, draws=4)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    again = augmented_views(config, "visible", records, draws=4)
    for (_, a), (_, b) in zip(first, again, strict=True):
        assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
        assert a[0].size == (32, 48) and a[0].tobytes() != a[2].tobytes()
        view2 = np.asarray(a[1]).astype(int)  # one channel over all three, but for the normalisation
        assert abs(np.corrcoef(view2[..., 0].ravel(), view2[..., 2].ravel())[0, 1]) > 0.98


@pytest.mark.slow
def test_figures_as_files(run_folder, tmp_path, no_figures_in_the_page):
    """One file each, the same bytes each time; text stays text in SVG, fonts are TrueType in PDF."""
    said = []
    names = ["clusters", "distances", "loss", "pseudo-labels", "t-sne", "tests"]
    for form in ("pdf", "svg"):
        folder = tmp_path / "new" / form
        write_report(run_folder, figures=folder, form=form, say=said.append)
        files = sorted(folder.iterdir())
        assert [file.name for file in files] == [f"{name}.{form}" for name in names]
        assert str(files[0]) in said
        figures.save_figure(figures.loss_figure(read_run(run_folder)), form, again := tmp_path / form)
        assert again.read_bytes() == (folder / f"loss.{form}").read_bytes()
        for content in (file.read_bytes() for file in files):
            assert b"</svg>" in content if form == "svg" else content.startswith(b"%PDF") and b"/Type3" not in content


def test_a_file_in_the_place_of_the_figures_folder(run_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        write_report(run_folder, figures=tmp_path / "file")
