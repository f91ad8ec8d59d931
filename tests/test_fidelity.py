"""Points in which the published runs decide (method page, section 9) and that no other test covers.

The page names, for each point, the place in the code and the test.
"""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_sets import TINY_RUN

import train_sdcl
from sdcl.config import PRESETS
from sdcl.frame import embedding, retrieval
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.run import Run
from sdcl.memory import InstanceMemory
from sdcl.models import Embeddings, build_model, retrieval_features
from sdcl.training import method
from sdcl.training.step import make_optimizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run: its folder, its log, and the interpolations that images were resized with, in order."""
    folder, resized = tmp_path_factory.mktemp("fidelity"), []
    reader = embedding.pixel_reader

    def recorded(paths, modality, size, interpolation, *further):
        resized.append(interpolation)
        return reader(paths, modality, size, interpolation, *further)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "pixel_reader", recorded)
        train_sdcl.main(
            [
                *TINY_RUN,
                "--epochs",
                "4",
                "--stage2-from",
                "3",
                "--data-dir",
                str(folder / "data"),
                "--run-dir",
                str(folder / "run"),
            ]
        )
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return folder / "run", log, resized


def test_a_new_embedding_outweighs_its_memory_row():
    """9.1: at the length of a batch-normalised embedding, √768, a tenth of it is 2.8 beside the old row's 0.9."""
    old, new = F.normalize(torch.randn(2, 768), dim=1)
    memory = InstanceMemory(old[None])
    memory.update(new[None] * 768**0.5, torch.tensor([0]))
    assert float(memory.features[0] @ new) > 0.94


@pytest.mark.slow
def test_clustering_is_bicubic_and_the_test_lanczos(run):
    """9.5, and 9.8: both modalities are embedded for clustering and for the test in every epoch."""
    _, log, resized = run
    epochs = 4 * len(log)
    assert resized[:epochs] == ["bicubic", "bicubic", "lanczos", "lanczos"] * len(log)
    assert set(resized[epochs:]) == {"lanczos"}


def test_the_final_sysu_test_adds_the_levels_cosines():
    """9.5: levels of different length count alike there, and by their lengths in every other test."""
    x = Embeddings(torch.randn(5, 8) * 10, torch.randn(5, 8))
    each, whole = retrieval_features(x, each_level=True), retrieval_features(x, each_level=False)
    cosines = [F.normalize(level, dim=1) @ F.normalize(level, dim=1).t() for level in x]
    torch.testing.assert_close(each @ each.t(), cosines[0] + cosines[1])
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    assert float((whole @ whole.t() - cosines[0]).abs().max()) < 0.2


@pytest.mark.parametrize("dataset, final, each", [("sysu", True, True), ("sysu", False, False), ("regdb", True, False)])
def test_only_the_final_sysu_test_normalises_each_level(monkeypatch, dataset, final, each):
    seen = []
    monkeypatch.setattr(method, "retrieval_features", lambda embeddings, each, shallow: seen.append(each))
    levels = {m: {"deep": torch.ones(1, 2), "shallow": torch.ones(1, 2)} for m in ("visible", "infrared")}
    nothing = SimpleNamespace(tasks=[])
    assert retrieval.evaluate(method.METHOD, nothing, levels, PRESETS[dataset], final=final) == {}  # type: ignore[arg-type]
    assert seen == [each, each]


@pytest.mark.slow
def test_the_best_epoch_is_the_first_of_highest_rank1(run):
    """9.7, and section 6: stage 2 starts from the best epoch of stage 1."""
    folder, log, _ = run
    rank1 = [line["all_search"]["rank1"] for line in log]
    best, best_of_stage1 = rank1.index(max(rank1)), rank1.index(max(rank1[:3]))
    results = json.loads((folder / "results.json").read_text())
    assert (results["epoch"], results["selected_by"]) == (best, "test-rank1")
    assert read_checkpoint(folder / "best.pth")["epoch"] == best
    assert read_checkpoint(folder / "stage1.pth")["epoch"] == best_of_stage1
    assert {"all_search", "indoor_search"} <= results["last"].keys()


@pytest.mark.parametrize("select, expected", [("test-rank1", [0, 1, 1, 1]), ("last", [0, 1, 2, 3])])
def test_selection_by_rank1_or_without_test_labels(tmp_path, select, expected):
    """9.7: equal Rank-1 keeps the first; `--select last` does not depend on it."""
    config = dataclasses.replace(PRESETS["demo"], run_dir=tmp_path, select=select)
    model = torch.nn.Linear(1, 1)
    run, optimizer, best = Run(tmp_path, method.METHOD, config, 0, "data"), torch.optim.SGD(model.parameters()), []
    for epoch, rank1 in enumerate((0.1, 0.3, 0.3, 0.2)):
        run.save({"epoch": epoch, "stage": 1}, rank1, model=model, optimizer=optimizer)
        best.append(run.best_epoch)
    run.close()
    assert best == expected and read_checkpoint(run.best)["epoch"] == expected[-1]


def test_everything_trained_is_decayed_and_only_two_biases_are_frozen():
    """Sections 1 and 7: weight decay spares nothing; only the biases of the embedding BatchNorms are not trained."""
    config = dataclasses.replace(PRESETS["demo"], model=dataclasses.replace(PRESETS["demo"].model, pretrained=None))
    model = build_model(config.model)
    (group,) = make_optimizer(model, config).param_groups
    trained = {id(p) for p in group["params"]}
    frozen = [name for name, p in model.named_parameters() if id(p) not in trained]
    assert frozen == ["deep_head.bn.bias", "shallow_head.bn.bias"] and group["weight_decay"] == 5e-4
