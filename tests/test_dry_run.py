"""The dry run: every phase at full size, nothing written, and hours that a real run takes."""

import contextlib
import dataclasses
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import draw_people
from test_machine import join, two_processes
from tiny_training import EPOCHS, STAGE2, in_process, settings

import train_sdcl
from sdcl.clustering import cluster
from sdcl.config import PRESETS
from sdcl.data.readers import regdb
from sdcl.data.synthetic import SyntheticConfig, write_regdb_layout
from sdcl.data.training_set import load_training_set
from sdcl.frame import dry_run
from sdcl.frame.cli import how_to_go_on, parse_training
from sdcl.frame.dry_run import Estimate, Phase
from sdcl.frame.progress import Progress
from sdcl.frame.retrieval import load_test_set
from sdcl.models import clustering_features
from sdcl.training import labels as labels_module
from sdcl.training import rehearsal
from sdcl.training.rehearsal import Rehearsal, draw_embeddings

pytestmark = pytest.mark.slow

PHASES = ["embed", "label, stage 1", "label, stage 2", "train, stage 1", "train, stage 2", "test", "final test"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_people(tmp_path_factory.mktemp("people"))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def table(out: str) -> dict[str, list[str]]:
    """The printed table: phase → its cells."""
    lines = out[out.index("\nphase ") + 1 :].partition("\n\n")[0].splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells[0] == ["phase", "seconds", "times", "hours"]
    return {name: rest for name, *rest in cells[1:]}


def test_the_estimate_is_what_a_run_takes(people: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """In processor seconds of this process, so that a busy machine does not matter: everything happens in it."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    arguments = settings(data_dir=people, run_dir=tmp_path / "run", steps_stage1=4, steps_stage2=3)
    config = parse_training(["demo", *arguments], "", PRESETS).config
    data, test_set = load_training_set(config, 0), load_test_set(config, 0)
    network = train_sdcl.network(config, 0, torch.device("cpu"), data, Progress(config, 0))
    estimate = Rehearsal(config, 0, data, test_set, *network).estimate()
    assert [phase.name for phase in estimate.phases] == PHASES
    assert [phase.times for phase in estimate.phases] == [4, 2, 2, 2, 2, 4, 4]
    assert not (tmp_path / "run").exists()

    assert in_process(capsys)("train", "demo", *arguments).status == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for phase in ("embed", "train", "test"):
        real = sum(line["seconds"][phase] for line in log)
        expected = sum(p.seconds * p.times for p in estimate.phases if p.name.partition(",")[0] == phase)
        assert real / 5 < expected < 5 * real, phase  # usually within a quarter
    assert estimate.steps.keys() == {"stage 1", "stage 2"} and all(min(step) > 0 for step in estimate.steps.values())


def test_every_phase_at_full_size(people: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """The clustering of all images, steps of whole batches with all loss terms of their stage."""
    seen: dict[str, list] = {"cluster": [], "losses": []}
    make, losses = labels_module.cluster, rehearsal.train_epoch

    def clustered(features, *rest, neighbors):
        seen["cluster"].append((tuple(features.shape), rest))
        return make(features, *rest, neighbors=neighbors)

    def trained(forward, optimizer, batches, *rest):
        before = [p.detach().clone() for p in forward.model.parameters()]
        means = losses(forward, optimizer, batches, *rest)
        moved = any(not torch.equal(a, b) for a, b in zip(before, forward.model.parameters(), strict=True))
        seen["losses"].append((rest[2].stage, [tuple(b[0].shape) for b in batches], sorted(means), moved))
        return means

    monkeypatch.setattr(labels_module, "cluster", clustered)
    monkeypatch.setattr(rehearsal, "train_epoch", trained)
    options = settings(data_dir=people, run_dir=tmp_path / "run", epochs=5, heterogeneous_from=3, k1_visible_stage2=4)
    done = in_process(capsys)("train", "demo", *options, "--dry-run")
    assert done.status == 0, done.err
    config = parse_training(["demo", *options], "", PRESETS).config
    sizes = {m: len(r) for m, r in load_training_set(config, 0).records.items()}
    for rows, k1 in ((sizes["visible"], 4), (sizes["infrared"], 5)):
        assert ((rows, 2 * 32), (0.6, 2, k1, 2)) in seen["cluster"]
    neighbors = {f"neighbor_{a}_{t}" for a in ("visible", "infrared") for t in ("visible", "infrared")}
    for stage, wanted in ((1, {"neighbor_visible_visible", "neighbor_infrared_infrared"}), (2, neighbors)):
        own = [x for x in seen["losses"] if x[0] == stage]
        assert [len(shapes) for _, shapes, _, _ in own] == [1, dry_run.TIMED_STEPS]
        assert all(set(shapes) == {(2 * 2 * 4, 3, 32, 16)} and moved for _, shapes, _, moved in own)
        assert {name for name in own[0][2] if name.startswith("neighbor")} == wanted


def test_beside_a_run_that_goes_on(people: Path, tmp_path: Path, capsys) -> None:
    """Its folder is left as it is, in use or not, and no --resume is asked for; bad input is found as in training."""
    run, folder = in_process(capsys), tmp_path / "run"
    options = settings(data_dir=people, run_dir=folder, epochs=1, stage2_from=1)
    assert run("train", "demo", *options).status == 0
    before = files(tmp_path)
    done = run("train", "demo", *options, "--dry-run")
    assert done.status == 0 and files(tmp_path) == before
    assert list(table(done.out)) == [p for p in PHASES if "stage 2" not in p] + ["whole schedule"]
    assert table(done.out)["final test"][1] == "3"
    assert re.search(r"started now, it would end on \w+day, \d\d \w+ \d{4}, at \d\d:\d\d", done.out)
    assert re.search(r"a step of stage 1: \d+\.\d\d s; .*: \d+\.\d\d s", done.out) and "peak of memory: " in done.out
    assert "is more than the" in run("train", "demo", *options, "--dry-run", "--instances", 500).error
    assert "no weight file at" in run("train", "demo", *options, "--dry-run", "--pretrained", tmp_path / "none").error


def rehearse(rank: int, folder: Path, port: int) -> None:
    """In one of two processes."""
    join(rank, port)
    options = settings(data_dir=folder / "people", run_dir=folder / "run", workers=0)
    with open(folder / f"said{rank}.txt", "w") as said, contextlib.redirect_stdout(said):
        train_sdcl.main(["demo", *options, "--dry-run"])


def test_two_processes(people: Path, tmp_path: Path) -> None:
    (tmp_path / "people").symlink_to(people)
    two_processes(rehearse, tmp_path)
    said = [(tmp_path / f"said{rank}.txt").read_text() for rank in range(2)]
    assert list(table(said[0])) == [*PHASES, "whole schedule"] and "whole schedule" not in said[1]
    assert [table(said[0])[f"train, stage {s}"][1] for s in (1, 2)] == [str(STAGE2), str(EPOCHS - STAGE2)]
    assert not (tmp_path / "run").exists()


def test_all_trials_of_regdb(tmp_path: Path, capsys) -> None:
    write_regdb_layout(tmp_path / "data", SyntheticConfig(4, 2, height=32, width=16), workers=1, progress=False)
    regdb.prepare(tmp_path / "data", progress=False)
    options = settings(data_dir=tmp_path / "data", run_dir=tmp_path / "run", k1=4)
    run = in_process(capsys)
    every = run("train", "regdb", *options, "--no-published-counts", "--dry-run")
    assert every.status == 0 and list(table(every.out)) == [*PHASES, "a trial", "10 trials"]
    one = run("train", "regdb", *options, "--no-published-counts", "--dry-run", "--trial", 4)
    assert "trial 4: " in one.out and list(table(one.out))[-1] == "whole schedule"
    assert not (tmp_path / "run").exists()


def test_hours_add_up() -> None:
    estimate = Estimate([Phase("embed", 72.0, 50), Phase("final test", 900.0, 4)], {})
    assert estimate.seconds == 7200
    assert estimate.table(10).splitlines() == [
        "phase       seconds  times  hours",
        "embed          72.0     50   1.00",
        "final test    900.0      4   1.00",
        "a trial                      2.00",
        "10 trials                   20.00",
    ]


def test_the_pace_is_that_of_the_later_batches() -> None:
    marks = [(0, 10.0), (100, 14.0), (200, 15.0), (300, 16.0)]  # four seconds until the first, then one a batch
    assert dry_run._extrapolate(marks, 300) == 6.0
    assert dry_run._extrapolate(marks, 1100) == 14.0
    assert dry_run._extrapolate([(0, 0.0), (50, 2.0)], 100) == 4.0


def test_drawn_embeddings_cluster_into_their_people() -> None:
    generator = torch.Generator().manual_seed(0)
    who = [torch.randperm(n, generator=generator) % 20 for n in (400, 300)]
    for embeddings, people in zip(draw_embeddings(who, 64, generator, torch.device("cpu")), who, strict=True):
        assert embeddings.deep.shape == embeddings.shallow.shape == (len(people), 64)
        found = cluster(clustering_features(embeddings), eps=0.6, k1=15, k2=4)
        kept = found >= 0
        assert kept.mean() > 0.5 and 10 <= found.max() + 1 <= 30
        assert all(len(np.unique(people.numpy()[found == k])) == 1 for k in range(found.max() + 1))


def test_interrupted(monkeypatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "train_sdcl.py", "sysu", "--dry-run"])
    assert how_to_go_on() == "A dry run leaves nothing behind"
    assert parse_training(["sysu", "--dry-run"], "", PRESETS).dry_run
    assert dataclasses.replace(parse_training(["sysu"], "", PRESETS), dry_run=True).config == PRESETS["sysu"]
