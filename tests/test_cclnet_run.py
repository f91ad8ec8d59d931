"""Whole CCLNet runs on a tiny drawn set: what a stage hands to the next, resuming, and clear words for bad input."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cclnet_runs import CONTRAST, PROMPT, SETTINGS, TINY, draw_people, program, result_of, write_clip
from cclnet_small import clip_state, small_model
from torture import differences

import train_cclnet
from sdcl.cclnet.export import next_labels
from sdcl.cclnet.handover import LABEL_FILES, read_handover
from sdcl.cclnet.method import METHOD, embed_projections, initial_model
from sdcl.cclnet.settings import Config
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.cli import parse_training
from sdcl.frame.embedding import embed_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with people, a CLIP file, and `whole`: a run of all stages that was left in peace."""
    folder = tmp_path_factory.mktemp("cclnet")
    draw_people(folder / "data")
    write_clip(folder / "clip.pth")
    program(folder)("whole")
    return folder


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def settings_of(place: Path, *options: str) -> Config:
    folders = ["--data-dir", str(place / "data"), "--clip", str(place / "clip.pth")]
    return parse_training([*SETTINGS, *folders, *options], "", METHOD.presets).config


def unequal(a: Path, b: Path) -> list[str]:
    """Differences but for the settings that say where a stage started from."""
    return [d for d in differences(a, b) if not d.endswith((".stage", ".labels", ".prompts"))]


# -- the whole run ------------------------------------------------------------------------------------------------


def test_log_of_all_stages(place):
    log = log_of(place / "whole")
    assert [(x["epoch"], x["stage"], x["stage_epoch"]) for x in log] == [
        (0, 0, 1), (1, 0, 2), (2, 1, 1), (3, 1, 2), (4, 2, 1), (5, 2, 2)
    ]  # fmt: skip
    contrast = {"contrast_visible", "contrast_infrared"}
    texts = {"text_visible", "text_infrared"}
    for x in log:
        terms = {k: v for k, v in x.items() if k.startswith(("contrast_", "text_", "prompt"))}
        assert terms.keys() == [contrast, {"prompt"}, contrast | texts][x["stage"]]
        assert x["loss"] == pytest.approx(sum(terms.values()), rel=1e-5)
        assert ("all_search" in x) == (x["epoch"] != 2)  # stage 1 is tested at its end
    for x in (log[0], log[1], log[4], log[5]):
        assert {"visible_purity", "infrared_ari", "matched_clusters", "matching_accuracy"} <= x.keys()
        mixing = x["stage_epoch"] >= 2
        assert (x["mixed_visible_clusters"] > 0) == (x["mixed_infrared_clusters"] > 0) == mixing


def test_the_first_epochs_of_stages_0_and_2_find_identical_clusters(place):
    """Both start from CLIP: nothing but the labels goes from stage 0 on."""
    first, again = (log_of(place / "whole")[epoch] for epoch in (0, 2 + CONTRAST))
    for m in ("visible", "infrared"):
        for name in ("clusters", "outliers", "purity", "ari", "cluster_sizes"):
            assert first[f"{m}_{name}"] == again[f"{m}_{name}"]
    assert first["matching_accuracy"] == again["matching_accuracy"]
    assert first["contrast_visible"] != again["contrast_visible"]  # but stage 2 trains on texts as well


def test_stage_1_is_of_clip_as_it_is(place):
    """Prompts are learned from the untouched network, re-initialised after stage 0."""
    config, run = settings_of(place), place / "whole"
    initial = initial_model(config, 0).image.state_dict()
    after = read_checkpoint(run / "stage1.pth")["model"]
    assert all(torch.equal(after[k], x) for k, x in initial.items())
    trained = read_checkpoint(run / "stage0.pth")["model"]
    assert not torch.equal(trained["trunk.layer1.0.conv1.weight"], initial["trunk.layer1.0.conv1.weight"])
    line, results = log_of(run)[1 + PROMPT], json.loads((run / "results.json").read_text())
    assert line["all_search"] == results["start"]["all_search"]


def test_what_stages_hand_on(place):
    """Labels of stage 0's last epoch in the published files; learned vectors and texts of these clusters."""
    run = place / "whole"
    handed, log = read_handover(run / "prompts.pth"), log_of(run)
    for m in ("visible", "infrared"):
        y = np.load(run / LABEL_FILES[m])
        assert y.dtype == np.int64 and y.max() + 1 == log[CONTRAST - 1][f"{m}_clusters"]
        assert (y < 0).sum() == log[CONTRAST - 1][f"{m}_outliers"]
        assert torch.equal(handed.labels[m], torch.from_numpy(y))
        assert handed.contexts[m].shape == (y.max() + 1, 4, TINY.text_width)
    model = initial_model(settings_of(place), 0)
    model.language.restart(*(len(c) for c in handed.contexts.values()))
    with torch.no_grad():
        for m, context in handed.contexts.items():
            model.language.sentences(m).context.copy_(context)
            assert torch.equal(model.language.all_texts(m), handed.texts[m])


def test_best_epoch_of_a_stage_is_the_first_of_the_largest(place):
    run, log = place / "whole", log_of(place / "whole")
    for stage, name in ((0, "stage0.pth"), (2, "best.pth")):
        tested = [(x["all_search"]["rank1"], -x["epoch"]) for x in log if x["stage"] == stage]
        assert read_checkpoint(run / name)["epoch"] == -max(tested)[1]
    results = json.loads((run / "results.json").read_text())
    assert results["epoch"] == read_checkpoint(run / "best.pth")["epoch"] >= CONTRAST + PROMPT
    assert results["all_search"]["rank1"] == log[results["epoch"]]["all_search"]["rank1"]
    assert {"stage0", "start", "last", "chance"} <= results.keys()


# -- stages by themselves -----------------------------------------------------------------------------------------


def test_stages_one_by_one_are_the_whole_run(place):
    """Between them, the labels that the next epoch would train on can be had, without training it."""
    run, parts = program(place), place / "parts"
    run("parts", "--stage", 0)
    assert not (parts / "prompts.pth").exists() and len(log_of(parts)) == CONTRAST
    labels, _, said = next_labels(parts)
    stored = {m: torch.from_numpy(np.load(parts / name)) for m, name in LABEL_FILES.items()}
    assert "stored labels" in said and all(torch.equal(labels[m], stored[m]) for m in labels)
    run("parts", "--stage", 1, "--resume", "auto")
    assert len(log_of(parts)) == CONTRAST + PROMPT
    labels, records, said = next_labels(parts)
    first = log_of(place / "whole")[CONTRAST + PROMPT]
    assert f"labels of epoch {CONTRAST + PROMPT}, stage 2" in said
    for m, y in labels.items():
        assert len(y) == len(records[m]) and int(y.max()) + 1 == first[f"{m}_clusters"]
    run("parts", "--stage", 2, "--resume", "auto")
    assert unequal(place / "whole", parts) == []


def test_stages_from_files(place):
    """Stages 1 and 2 from label files alone, stage 2 from prompts.pth alone: the same weights as in the whole run."""
    labels = place / "labels"
    labels.mkdir()
    for name in LABEL_FILES.values():
        shutil.copy(place / "whole" / name, labels)
    run, whole = program(place), place / "whole"
    run("from-labels", "--stage", 1, 2, "--labels", labels)
    run("from-prompts", "--stage", 2, "--prompts", place / "from-labels" / "prompts.pth")
    for name, epochs in (("from-labels", PROMPT + CONTRAST), ("from-prompts", CONTRAST)):
        folder = place / name
        assert differences_of_weights(whole / "last.pth", folder / "last.pth") == []
        for ours, theirs in zip(log_of(folder), log_of(whole)[-epochs:], strict=True):
            assert {k: v for k, v in ours.items() if k != "seconds"} == {
                k: v for k, v in theirs.items() if k != "seconds"
            }


def differences_of_weights(a: Path, b: Path) -> list[str]:
    first, second = (read_checkpoint(path)["model"] for path in (a, b))
    return [k for k in first if not torch.equal(first[k], second[k])]


class Stopped(Exception):
    """Stands for a kill."""


def test_a_run_stopped_within_and_between_stages_ends_as_an_uninterrupted_one(place, monkeypatch):
    """Files are written in a fixed order; each stop comes before or after one of them takes its name. Once, only the
    stages that are left go on."""
    rename, run, trap = os.replace, program(place), []

    def replace(source, target):
        file, place_of_stop, epoch = trap
        lines = len(log_of(Path(target).parent)) if (Path(target).parent / "log.jsonl").exists() else 0
        hit = Path(target).name == file and lines == epoch
        if hit and place_of_stop == "before":
            raise Stopped
        rename(source, target)
        if hit:
            raise Stopped

    monkeypatch.setattr(os, "replace", replace)
    for stop in (
        ("last.pth", "before", 1),                                    # within stage 0
        (LABEL_FILES["infrared"], "before", CONTRAST - 1),            # labels half handed on
        ("stage0.pth", "after", CONTRAST),                            # between stages 0 and 1
        ("last.pth", "after", CONTRAST + 1),                          # within stage 1
        ("prompts.pth", "after", CONTRAST + PROMPT - 1),              # prompts handed on, epoch not ended
        ("stage1.pth", "before", CONTRAST + PROMPT),                  # between stages 1 and 2
        ("best.pth", "before", CONTRAST + PROMPT + 1),                # within stage 2
    ):  # fmt: skip
        trap[:] = stop
        with pytest.raises(Stopped):
            run("stopped", "--resume", "auto", *(("--stage", 1, 2) if stop[0] == "stage1.pth" else ()))
    trap[:] = ("", "", -1)
    run("stopped", "--resume", "auto")
    assert unequal(place / "whole", place / "stopped") == []


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fails(place, capsys):
    """fails(options): the one line that such a run ends with."""
    return lambda *options: result_of(lambda: program(place)("fails", *options), capsys).error


def test_clip_files(place, fails, tmp_path):
    assert "no CLIP weights at" in fails("--clip", tmp_path / "none.pt")
    torch.save({"visual.class_embedding": torch.zeros(3), "visual.conv1.weight": torch.zeros(3)}, tmp_path / "vit.pt")
    assert "vision transformer (ViT), but this needs CLIP's ResNet-50" in fails("--clip", tmp_path / "vit.pt")
    torch.save(clip_state(small_model()), tmp_path / "other.pt")
    assert "with 1, 2, 1, 1 blocks, but this needs one with 1, 1, 1, 1" in fails("--clip", tmp_path / "other.pt")


def test_starts_without_what_they_need(place, fails, tmp_path):
    assert "stage 1 needs the labels of stage 0: --labels DIR" in fails("--stage", 1)
    assert "stage 2 needs what stage 1 handed on: --prompts" in fails("--stage", 2)
    assert "--stage 0 2: give one of 0, 1, 2, or several in a row" in fails("--stage", 0, 2)
    assert "no stored visible labels at" in fails("--stage", 1, "--labels", tmp_path)
    for m, n in (("visible", 5), ("infrared", 24)):
        np.save(tmp_path / LABEL_FILES[m], np.zeros(n, np.int64))
    assert "has 5 labels, but there are 48 visible training images" in fails("--stage", 1, "--labels", tmp_path)


def test_too_few_clusters(place, fails):
    message = fails("--min-samples", 45)
    assert "clustering found 0 clusters in 48 visible images, 48 outliers, but a batch takes 2" in message
    assert "Rows by the distance within which they have 45 neighbours" in message


def test_one_process_alone(place, fails, monkeypatch):
    monkeypatch.setattr(train_cclnet.distributed, "world", lambda: 2)
    assert "CCLNet trains in one process" in fails()


def test_a_prompt_batch_that_leaves_no_rest(place):
    """The published program stops when the batch divides the number of labelled images; here there is no rest."""
    labels = [np.load(place / "whole" / name) for name in LABEL_FILES.values()]
    n = max(int((y >= 0).sum()) for y in labels)
    program(place)(
        "even", "--stage", 1, "--labels", place / "whole", "--prompt-batch", n, "--prompt-epochs", 1
    )  # fmt: skip
    assert log_of(place / "even")[0]["prompt"] > 0


# -- the shared programs ------------------------------------------------------------------------------------------


def test_projections_and_features_are_of_one_network(place):
    config = settings_of(place)
    model = initial_model(config, 0)
    from sdcl.data.training_set import load_training_set

    records = {m: rows[:3] for m, rows in load_training_set(config, 0).records.items()}
    features = embed_records(METHOD.embedding, model.image, records, config, "lanczos")
    projections = embed_records(embed_projections, model.image, records, config, "lanczos")
    assert features["visible"]["features"].shape == (3, 128) and projections["visible"]["projections"].shape == (3, 8)
    torch.testing.assert_close(features["infrared"]["features"].norm(dim=1), torch.ones(3))
