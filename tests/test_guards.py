"""Guards: what stops a run that cannot go well, what it says, and how a run trains on with its last good labels."""

import dataclasses
import inspect
import json
import os
import re
from pathlib import Path

import pytest
import torch
from tiny_training import in_process, settings

import train_sdcl
from sdcl import distributed
from sdcl.clustering import neighbors
from sdcl.config import PRESETS, Config
from sdcl.cra import associate
from sdcl.data.readers import sysu
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout
from sdcl.errors import UserError
from sdcl.frame.guards import check_finite, out_of_memory_explained
from sdcl.models import Embeddings
from sdcl.seeds import use_deterministic_kernels
from sdcl.training.checks import check_labels
from sdcl.training.labels import PseudoLabels, make_labels

CONFIG = Config(dataset="sysu", data_dir=Path("d"), run_dir=Path("r"), identities=2, instances=4, min_samples=2, k1=5,
                k2=2, stage2_from=1)  # fmt: skip
STAGE1, STAGE2 = CONFIG.at(0), CONFIG.at(1)
ROWS = 24


def embeddings() -> Embeddings:
    """Four groups of six rows, well apart."""
    centres = torch.eye(4, 8).repeat_interleave(6, 0) * 5
    return Embeddings(centres + torch.randn(ROWS, 8) * 0.1, centres + torch.randn(ROWS, 8) * 0.1)


GOOD = torch.arange(ROWS) // 6


def problem(visible=GOOD, infrared=GOOD, associated=None, config=CONFIG) -> str | None:
    stage = 1 if associated is None else 2
    labels = PseudoLabels(visible, infrared, visible if associated is None else associated, stage)
    return check_labels(labels, embeddings(), embeddings(), config.at(stage - 1), config)


NONE = torch.full((ROWS,), -1)


@pytest.mark.parametrize(("knn", "searches"), [("exact", 0), ("ivf", 1)])
def test_the_approximate_search_is_used_where_asked_for(knn, searches, monkeypatch):
    pytest.importorskip("faiss")
    asked = []
    search = neighbors.search_ivf
    monkeypatch.setattr(neighbors, "search_ivf", lambda x, k, rows: asked.append(len(x)) or search(x, k, rows))
    config = dataclasses.replace(CONFIG, knn=knn)
    assert int(make_labels(embeddings(), embeddings(), STAGE1, config).visible.max()) == 3
    assert asked == [ROWS, ROWS] * searches  # both modalities
    assert "Rows by the distance" in str(problem(visible=NONE, config=config))
    assert asked == [ROWS] * 3 * searches
    assert CONFIG.differences(config) == ["--knn exact (was ivf)"] * searches


def test_training_associates_by_the_search_of_clustering(monkeypatch) -> None:
    """From thousands of rows on that is the compiled one; labels are those of matrix products."""
    monkeypatch.setattr(neighbors, "TILES_FROM", 1)
    asked = []
    search = neighbors.search_compiled
    monkeypatch.setattr(neighbors, "search_compiled", lambda *x: asked.append(x[2]) or search(*x))
    visible, infrared = embeddings(), embeddings()
    made = make_labels(visible, infrared, STAGE2, CONFIG)
    assert len(asked) == 2 + 3  # both modalities; two levels and the visible rows among themselves
    plain = associate(*visible, *infrared, made.infrared, CONFIG.association_k, CONFIG.smooth_k)
    assert torch.equal(made.visible, plain)


@pytest.mark.parametrize(("changes", "message"), [
    ({"visible": NONE}, "epoch 0: clustering found no clusters in 24 visible images, 24 outliers. A larger --eps"),
    ({"infrared": NONE}, "no clusters in 24 infrared images"),
    ({"visible": NONE + 1}, "found 1 cluster in 24 visible images, 0 outliers. A smaller --eps splits it"),
    ({"infrared": torch.where(GOOD == 3, 0, -1)}, "found 1 cluster in 24 infrared images, 18 outliers"),
    ({"associated": NONE}, "epoch 1: no visible image got an infrared label: .*24 were associated with outliers and 0"),
    ({"associated": torch.where(GOOD == 1, 2, -1)},
     "the visible images: a batch needs 8 rows, .* gives 4: 1 pseudo-identities .* hold 6 of 24 images"),
])  # fmt: skip
def test_degenerate_labels_are_told_with_settings_and_distances(changes: dict, message: str) -> None:
    found = problem(**changes)
    assert found is not None and re.search(message, found), found
    if "no visible image got" not in found:
        k1 = "--k1-visible-stage2 15" if "associated" in changes else "--k1 5"
        assert f"The settings were --eps 0.6 {k1} --min-samples 2. Rows by the distance within which" in found
        histogram = re.findall(r"(\d\.\d)-(\d\.\d): (\d+)", found)
        assert sum(int(n) for _, _, n in histogram) == ROWS and all(float(a) < float(b) for a, b, _ in histogram)
    assert "--eps" in found and "\n" not in found


def test_too_few_clusters_for_a_batch() -> None:
    config = PRESETS["demo"]  # a batch of 8 x 4, from four clusters
    found = check_labels(PseudoLabels(GOOD, GOOD, GOOD, 1), embeddings(), embeddings(), config.at(0), config)
    assert found is not None and "a batch needs 32 rows, but one pass over the pseudo-identities gives 16" in found


def test_good_labels_pass() -> None:
    assert problem() is None
    assert problem(associated=GOOD) is None
    singles = torch.cat([torch.arange(8), NONE[8:]])
    assert problem(visible=singles) is None, "eight identities of a single image each fill a batch of eight"
    assert "gives 7: 7 pseudo-identities (0 of at least two images, 7 of one)" in str(problem(visible=singles - 1))


def test_the_log_tells_singles_and_rows_without_a_partner() -> None:
    visible = torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])
    infrared = torch.tensor([0, 0, 1, 1, 1, 2, 3, -1])
    assert PseudoLabels(visible, infrared, visible, 1).counts() == {
        "visible_clusters": 3, "visible_outliers": 2, "infrared_clusters": 4, "infrared_outliers": 1,
        "visible_singles": 1, "infrared_singles": 2,
    }  # fmt: skip
    associated = torch.tensor([1, 1, 1, -1, -1, 0, 2, -1])  # the row with label 2 is an outlier: it does not train
    labels = PseudoLabels(visible, infrared, associated, 2)
    assert labels.association({"association_accuracy": 0.754}) == "association 2 clusters, 0.75 right"
    assert labels.association({}) == "association 2 clusters" and PseudoLabels(*[visible] * 3, 1).association({}) == ""
    counts = labels.counts()
    assert counts["associated_visible_clusters"] == 2 and counts["visible_singles"] == 1
    assert counts["visible_unassociated"] == 2, "rows 3 and 4 are in a cluster, but have no infrared label"
    assert counts["infrared_unassociated"] == 2, "clusters 2 and 3 were given to no visible row that trains"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named(value: float) -> None:
    check_finite({"loss": 1e30, "cluster_visible_deep": 0.0}, 3, 10)
    message = r"epoch 3 within the steps up to 10 \(terms that are not: cluster_visible_deep\).*--resume changed and"
    with pytest.raises(UserError, match=message):
        check_finite({"loss": value, "cluster_visible_deep": value, "cluster_infrared_deep": 1.0}, 3, 10)


def test_out_of_memory_says_what_to_lower(monkeypatch) -> None:
    class Properties:
        total_memory = 24 * 2**30

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    config = PRESETS["sysu"]
    with pytest.raises(UserError) as caught, out_of_memory_explained(config, config.less_memory()):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand a long story")
    message = str(caught.value)
    assert "24 GiB are not enough (CUDA out of memory. Tried to allocate 2.00 GiB.)" in message
    wanted = ["--embedding-batch 128", "--gradient-checkpointing", "--accumulate 8", "--nproc-per-node 2",
              "--precision bf16", "--instances 8"]  # fmt: skip
    assert sorted(wanted, key=message.index) == wanted and "\n" not in message


def test_a_killed_reader_is_explained_and_other_mistakes_are_not() -> None:
    config = dataclasses.replace(PRESETS["sysu"], workers=8)
    with pytest.raises(UserError, match="Lower --workers 8 to 4"), out_of_memory_explained(config):
        raise RuntimeError("DataLoader worker (pid(s) 17) exited unexpectedly")
    with pytest.raises(RuntimeError, match="a mistake"), out_of_memory_explained(PRESETS["sysu"]):
        raise RuntimeError("a mistake")


# -- in whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    people = SyntheticConfig(6, 3, images_per_camera=2, height=32, width=16, absence=0.0)
    write_sysu_layout(root, people, workers=1, progress=False)
    sysu.prepare(root, progress=False)
    return root


@pytest.fixture
def train(data: Path, tmp_path: Path, capsys):
    program = in_process(capsys)

    def run(*options: object, **changes: object):
        base = {"data_dir": data, "run_dir": tmp_path / "run", "epochs": 3, "stage2_from": 3, "steps_stage1": 2}
        return program("train", "demo", *settings(**{**base, **changes}), *options)

    return run


def lines(run_dir: Path) -> list[dict]:
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"}
            for x in (run_dir / "log.jsonl").read_text().splitlines()]  # fmt: skip


def degenerate_in(monkeypatch, epochs: set[int]) -> None:
    """Makes all rows outliers in these epochs."""
    make = train_sdcl.make_labels

    def make_labels(visible, infrared, settings, config):
        labels = make(visible, infrared, settings, config)
        if settings.epoch not in epochs:
            return labels
        nothing = torch.full_like(labels.visible, -1)
        return PseudoLabels(nothing, labels.infrared, nothing, labels.stage)

    monkeypatch.setattr(train_sdcl, "make_labels", make_labels)


@pytest.mark.slow
def test_keep_labels_trains_on_and_survives_an_interruption(train, tmp_path: Path, monkeypatch) -> None:
    degenerate_in(monkeypatch, {1, 2})
    message = train().error
    assert "epoch 1: clustering found no clusters in" in message and "Rows by the distance" in message
    assert "--resume auto --on-degenerate keep-labels" in message
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [0]

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # in epoch 2, whose labels are then those of epoch 0, from last.pth
        check = train_sdcl.check_labels
        patch.setattr(train_sdcl, "check_labels", lambda y, v, i, s, c: check(y, v, i, s, c) if s.epoch < 2 else stop())
        stopped = train("--resume", "auto", "--on-degenerate", "keep-labels")
        assert stopped.status == 130 and "warning: epoch 1: clustering found no clusters" in stopped.err
        assert "go on with:" in stopped.err
    assert train("--resume", "auto", "--on-degenerate", "keep-labels").status == 0
    resumed = lines(tmp_path / "run")
    assert [line.get("labels_kept", False) for line in resumed] == [False, True, True]
    assert len({line["visible_clusters"] for line in resumed}) == 1

    assert train("--on-degenerate", "keep-labels", run_dir=tmp_path / "whole").status == 0
    assert lines(tmp_path / "whole") == resumed, "as without any interruption"
    weights = [torch.load(tmp_path / run / "last.pth", weights_only=True)["model"] for run in ("run", "whole")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.slow
def test_nothing_to_keep(train, tmp_path: Path, monkeypatch) -> None:
    """No labels before the first epoch, none of stage 1 for stage 2."""
    degenerate_in(monkeypatch, {0, 2})
    assert "There are no labels of an epoch before" in train("--on-degenerate", "keep-labels").error
    degenerate_in(monkeypatch, {1})
    message = train("--on-degenerate", "keep-labels", run_dir=tmp_path / "other", stage2_from=1).error
    assert "no labels of an epoch before" in message or "of stage 1 and cannot stand in" in message


@pytest.mark.slow
def test_a_run_that_diverges_stops_and_keeps_the_epochs_before(train, tmp_path: Path) -> None:
    assert train(epochs=1).status == 0
    before = (tmp_path / "run" / "last.pth").read_bytes(), (tmp_path / "run" / "log.jsonl").read_text()
    message = train(resume="changed", temperature=1e-42, epochs=2).error
    assert "the loss is not finite in epoch 1" in message and "terms that are not: cluster_" in message
    assert before == ((tmp_path / "run" / "last.pth").read_bytes(), (tmp_path / "run" / "log.jsonl").read_text())
    assert train(resume="changed", epochs=2).status == 0, "and goes on with another temperature"


@pytest.mark.slow
def test_unusable_settings_on_real_clusters(train) -> None:
    """With the real clustering: an eps that joins nobody, one that joins all."""
    assert "A larger --eps finds more" in train(eps=0.001, min_samples=9).error
    message = train(eps=0.999).error
    assert "A smaller --eps splits it" in message or "a batch needs" in message


def test_deterministic_kernels_are_asked_for_before_a_gpu_starts(monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        use_deterministic_kernels(True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        use_deterministic_kernels(True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "a user's own choice stands"
    finally:
        use_deterministic_kernels(False)
    assert not torch.are_deterministic_algorithms_enabled()
    start = inspect.getsource(distributed.start)
    assert start.index("use_deterministic_kernels(") < start.index("_device(config)")
