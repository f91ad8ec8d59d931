"""What the test program adds to the published table: shots, re-ranking, embeddings that are kept."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import MODEL, draw_people, make_run, random_features
from tiny_sets import make_regdb
from tiny_training import in_process

from sdcl.config import PRESETS
from sdcl.data.readers import regdb
from sdcl.evaluation import sysu_metrics
from sdcl.frame import embedding_cache
from sdcl.frame import results as results_module
from sdcl.frame.checkpoints import pack, save_checkpoint
from sdcl.frame.progress import result_table
from sdcl.frame.results import final_results, mean_of_trials
from sdcl.frame.retrieval import METRICS, embed_test_set, evaluate, load_test_set
from sdcl.frame.run import Run
from sdcl.models import build_model
from sdcl.report import write_report
from sdcl.rerank import rerank
from sdcl.training.method import METHOD

MODES = ["all_search", "indoor_search"]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return draw_people(tmp_path_factory.mktemp("people"))


@pytest.fixture
def folder(people, tmp_path):
    return make_run(tmp_path / "run", people)


@pytest.fixture
def run(people, folder, capsys):
    """A function that tests the run's best.pth with further options."""
    program = in_process(capsys)
    common = ["test", "demo", "--data-dir", people, "--workers", 0, "--checkpoint", folder / "best.pth"]
    return lambda *options: program(*common, *options)


def config_of(people):
    return dataclasses.replace(PRESETS["demo"], data_dir=people, model=MODEL)


def make_weights(path, trial, seed=0):
    torch.manual_seed(seed)
    model = build_model(MODEL)
    packed = pack(
        model, PRESETS["regdb"], method="sdcl", epoch=1, trial=trial, fingerprint="made-up", metrics={"rank1": 0.4}
    )
    save_checkpoint(path, packed | {"config": packed["config"] | {"model": vars(MODEL)}})
    return path


# -- after training ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ranks, tests", [((0.1, 0.2), 1), ((0.2, 0.1), 2)])
def test_weights_of_one_epoch_are_tested_once(people, tmp_path, monkeypatch, ranks, tests):
    config = dataclasses.replace(config_of(people), run_dir=tmp_path, model=MODEL, tensorboard=False)
    run, embedded = Run(tmp_path, METHOD, config, 0, "made-up"), []
    models = [build_model(MODEL) for _ in ranks]
    run.restore(model=models[0])
    for epoch, (rank1, model) in enumerate(zip(ranks, models, strict=True)):
        run.save({"epoch": epoch}, rank1, model=model)
    test_set = load_test_set(config)

    def counted(*arguments):
        embedded.append(arguments)
        return embed_test_set(*arguments)

    monkeypatch.setattr(results_module, "embed_test_set", counted)
    results = final_results(run, build_model(MODEL), test_set)
    run.close()
    assert len(embedded) == tests
    for name, model in (("last", models[-1]), (None, models[ranks.index(max(ranks))])):
        part = results[name] if name else results
        want = evaluate(METHOD, test_set, embed_test_set(METHOD, model, test_set, config), config, final=True)
        assert {mode: part[mode] for mode in MODES} == want


# -- shots -------------------------------------------------------------------------------------------------------------


def test_galleries_of_several_shots_are_drawn_as_documented(people):
    """Python's `sample` in sorted order of identities and cameras, all of a folder that holds fewer."""
    test_set = load_test_set(config_of(people), shots=10)
    single = load_test_set(config_of(people))
    assert [task.mode for task in test_set.tasks] == [f"{mode}_10_shot" for mode in MODES]
    assert [task.mode for task in single.tasks] == MODES
    for task, cameras in zip(test_set.tasks, ((1, 2, 4, 5), (1, 2)), strict=True):
        for trial, (modality, rows) in enumerate(task.galleries):
            draw, expected = random.Random(trial), []
            for identity in sorted(int(x) for x in (people / "exp" / "test_id.txt").read_text().split(",")):
                for camera in cameras:
                    images = sorted(map(str, (people / f"cam{camera}" / f"{identity:04d}").iterdir()))
                    expected += draw.sample(images, min(10, len(images)))
            assert [test_set.images[modality][r].path for r in rows] == expected
    assert len(test_set.images["visible"]) == len({r.path for r in test_set.images["visible"]})


@pytest.mark.slow
def test_the_table_of_several_shots_has_names_of_its_own(run, folder):
    assert run().status == 0
    shot = run("--shots", 2)
    assert shot.status == 0 and "all search 2 shot" in shot.out
    single, several = (json.loads((folder / f"test-best{x}.json").read_text()) for x in ("", "-2-shot"))
    assert [k for k in single if "search" in k] == MODES
    assert [k for k in several if "search" in k] == list(several["chance"]) == [f"{mode}_2_shot" for mode in MODES]
    # Two images of an identity in each camera: a chance hit at rank 1 stays as likely, the last hit comes later.
    assert several["chance"]["all_search_2_shot"]["rank1"] == pytest.approx(single["chance"]["all_search"]["rank1"])
    assert several["chance"]["all_search_2_shot"]["mINP"] != single["chance"]["all_search"]["mINP"]


def test_regdb_has_no_shots(tmp_path, capsys):
    root = make_regdb(tmp_path / "regdb")
    regdb.prepare(root, progress=False)
    (tmp_path / "trial-1").mkdir()
    weights = make_weights(tmp_path / "trial-1" / "best.pth", 1)
    program = in_process(capsys)
    common = ["test", "regdb", "--data-dir", root, "--workers", 0, "--checkpoint", weights]
    error = program(*common, "--shots", 10).error
    assert "--shots 10 is a variant of SYSU-MM01's test; that of RegDB has none" in error


@pytest.mark.parametrize("option, value, message", [
    ("--shots", 0, "shots is 0: --shots takes a number at least 1"),
    ("--rerank-k1", 0, "rerank-k1 is 0: --rerank-k1 takes a number at least 1"),
    ("--rerank-weight", 1.5, "rerank-weight is 1.5: --rerank-weight takes a number at least 0 and at most 1"),
])  # fmt: skip
def test_impossible_options(run, option, value, message):
    assert message in run(option, value).error


# -- re-ranking --------------------------------------------------------------------------------------------------------


def test_evaluate_takes_any_similarity(people):
    test_set, config = load_test_set(config_of(people)), config_of(people)
    rows = random_features(test_set)
    embeddings = {m: {"deep": x, "shallow": x.flip(1)} for m, x in rows.items()}
    table = evaluate(METHOD, test_set, embeddings, config, final=True, similarity=lambda q, g: rerank(q, g, 4, 2, 0.5))
    task = test_set.tasks[1]
    (q_ids, q_cams), found = test_set.of(task.query), []
    unit = {m: torch.cat([F.normalize(x, dim=1) for x in levels.values()], 1) for m, levels in embeddings.items()}
    for modality, gallery in task.galleries:
        g_ids, g_cams = test_set.of((modality, gallery))
        scores = rerank(unit["infrared"][task.query[1]], unit["visible"][gallery], 4, 2, 0.5)
        found.append(sysu_metrics(scores, q_ids, g_ids, q_cams, g_cams).mAP)
    assert table["indoor_search"]["mAP"] == pytest.approx(np.mean(found))
    assert table["indoor_search"]["mAP_std"] == pytest.approx(np.std(found))


@pytest.mark.slow
def test_rows_with_and_without_reranking(run, folder):
    assert run().status == 0
    plain = json.loads((folder / "test-best.json").read_text())
    both = run("--rerank", "--rerank-k1", 6, "--rerank-k2", 2)
    results = json.loads((folder / "test-best-rerank.json").read_text())
    assert json.loads((folder / "test-best.json").read_text()) == plain, "the published table stays"
    assert "rerank" not in plain and {k: results[k] for k in plain} == plain
    assert results["rerank_settings"] == {"k1": 6, "k2": 2, "weight": 0.3}
    assert list(results["rerank"]) == MODES
    assert all(results["rerank"][mode] != plain[mode] for mode in MODES)
    rows = [line.split() for line in both.out.splitlines() if line.startswith(("best", "re-ranked"))]
    assert [row[0] for row in rows] == ["best", "best", "re-ranked", "re-ranked"]
    assert rows[2][3] == f"{100 * results['rerank']['all_search']['rank1']:.2f}"
    assert run("--rerank", "--rerank-weight", 1.0).status == 0  # keeps the order
    kept = json.loads((folder / "test-best-rerank-2.json").read_text())
    for mode in MODES:
        assert kept["rerank"][mode] == pytest.approx(plain[mode], abs=1e-3)  # near ties round to another order


@pytest.mark.slow
def test_reranking_of_regdbs_trials_is_averaged(tmp_path, capsys):
    root = make_regdb(tmp_path / "regdb")
    regdb.prepare(root, progress=False)
    for trial in (1, 2):
        (tmp_path / "run" / f"trial-{trial}").mkdir(parents=True)
        (tmp_path / "run" / f"trial-{trial}" / "results.json").write_text("{}")
        make_weights(tmp_path / "run" / f"trial-{trial}" / "best.pth", trial, seed=trial)
    program = in_process(capsys)
    common = ["test", "regdb", "--data-dir", root, "--workers", 0, "--rerank"]
    tested = program(*common, "--checkpoint", tmp_path / "run", "--output", tmp_path / "mean.json")
    assert tested.status == 0, tested.err
    mean, parts = json.loads((tmp_path / "mean.json").read_text()), []
    for trial in (1, 2):
        one = tmp_path / f"{trial}.json"
        weights = tmp_path / "run" / f"trial-{trial}" / "best.pth"
        assert program(*common, "--checkpoint", weights, "--output", one).status == 0
        parts.append(json.loads(one.read_text()))
    for part in (lambda r: r, lambda r: r["rerank"]):
        for mode in ("visible_to_thermal", "thermal_to_visible"):
            for metric in METRICS:
                values = [part(r)[mode][metric] for r in parts]
                assert part(mean)[mode][metric] == pytest.approx(np.mean(values))
    assert mean["rerank_settings"] == {"k1": 20, "k2": 6, "weight": 0.3}
    table = result_table(mean, METHOD.parts)
    assert table in tested.out and "re-ranked" in table
    assert "rerank" not in mean_of_trials([{k: v for k, v in r.items() if "rerank" not in k} for r in parts])


# -- embeddings that are kept ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kept_embeddings_give_the_same_table_without_the_network(run, folder, monkeypatch):
    assert run().status == 0
    without = json.loads((folder / "test-best.json").read_text())
    first = run("--cache-features")
    file = folder / "embeddings-best.npz"
    assert f"embeddings-best.npz was not there; written to {file}" in first.out
    assert json.loads((folder / "test-best.json").read_text()) == without
    monkeypatch.setattr(embedding_cache, "embed_test_set", lambda *_: pytest.fail("embedded again"))
    again = run("--cache-features", "--rerank", "--embedding-batch", 7)
    assert f"test embeddings: those of {file}" in again.out
    results = json.loads((folder / "test-best-rerank.json").read_text())
    assert {k: results[k] for k in without} == without
    with np.load(file) as saved:
        for modality in ("visible", "infrared"):
            n = len(saved[f"{modality}_paths"])
            assert saved[f"{modality}_deep"].shape == saved[f"{modality}_shallow"].shape == (n, MODEL.dim)
            assert np.linalg.norm(saved[f"{modality}_deep"], axis=1).std() > 1e-4, "un-normalised"


@pytest.mark.slow
def test_the_report_and_the_test_share_them(run, folder, monkeypatch):
    assert run("--cache-features").status == 0
    monkeypatch.setattr(embedding_cache, "embed_test_set", lambda *_: pytest.fail("embedded again"))
    said = []
    write_report(folder, cache_features=True, say=said.append)
    assert f"test embeddings: those of {folder / 'embeddings-best.npz'}" in said


@pytest.mark.slow
def test_other_weights_images_or_settings_are_embedded_again(people, run, folder, tmp_path):
    assert run("--cache-features").status == 0
    file = folder / "embeddings-best.npz"
    kept = file.read_bytes()

    def reason(*options):
        said = run("--cache-features", *options)
        assert said.status == 0 and file.read_bytes() != kept, said.err
        return said.out

    assert "was of other settings" in reason("--precision", "tf32")
    file.write_bytes(kept)
    copy = tmp_path / "copy"
    shutil.copytree(people, copy)
    assert "was of other visible paths and infrared paths" in reason("--data-dir", copy)
    image = sorted((copy / "cam3").rglob("*.jpg"))
    test_ids = [int(x) for x in (copy / "exp" / "test_id.txt").read_text().split(",")]
    shown = next(path for path in image if int(path.parent.name) in test_ids)
    shown.write_bytes(shown.read_bytes() + b"\0")
    kept = file.read_bytes()
    assert "was of other images" in reason("--data-dir", copy)

    assert run("--cache-features").status == 0
    kept = file.read_bytes()
    packed = torch.load(folder / "best.pth", weights_only=True)
    packed["model"]["cls_token"] += 1
    torch.save(packed, folder / "best.pth")
    assert "was of other weights" in reason()
    file.write_bytes(kept[:5000])
    assert "could not be read" in reason()
    assert f"those of {file}" in run("--cache-features").out


@pytest.mark.slow
def test_several_shots_are_kept_apart(run, folder):
    assert run("--cache-features").status == 0
    single = (folder / "embeddings-best.npz").read_bytes()
    assert "embeddings-best-2-shot.npz" in run("--cache-features", "--shots", 2).out
    assert (folder / "embeddings-best.npz").read_bytes() == single
