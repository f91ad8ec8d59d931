"""Results do not depend on the number of processes or GPUs: weights, statistics, memories, embeddings, a whole run.

The workers import this file, so that one process and two run the same functions. With these small embeddings the
published learning rate moves some weights by 0.05 in five steps, far more than the tolerance. The network computes in
float64 here (losses and memories in float32, as always): at this size the stems' ReLUs flip on float32's rounding
alone, and a change of 1e-7 in the first weights has grown to 1e-4 five steps later.
"""

import dataclasses
import json
import threading
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_machine import join, two_machines, two_processes
from tiny_sets import TINY_RUN
from torch import nn
from torch.func import functional_call

import sdcl.training.labels
import train_sdcl
from sdcl import distributed
from sdcl.clustering import nearest_neighbors
from sdcl.config import PRESETS, ModelConfig
from sdcl.data.records import ImageRecord
from sdcl.errors import UserError
from sdcl.models import Embeddings, build_model, embed
from sdcl.seeds import seed_everything
from sdcl.training import PseudoLabels, build_memories, make_labels
from sdcl.training.labels import shared_search
from sdcl.training.replicas import ReplicaForward
from sdcl.training.step import Batches, make_optimizer, train_epoch

pytestmark = pytest.mark.slow

SMALL = ModelConfig(image_height=32, image_width=16, dim=16, depth=3, heads=2, drop_path=0.3)
CONFIG = dataclasses.replace(
    PRESETS["sysu"],
    model=SMALL,
    workers=0,
    embedding_batch=16,
    identities=4,
    instances=4,
    steps_stage1=5,
    steps_stage2=5,
    stage2_from=11,
    heterogeneous_from=0,
)
EPOCHS = {1: 10, 2: 11}  # with both neighbour losses
SIZES = {"visible": 43, "infrared": 30}  # embedding shares of unequal length


def images(folder):
    """Records of small images, drawn around a picture an identity; their files are made where they are not there."""
    records = {}
    for modality, size in SIZES.items():
        rng = np.random.default_rng(size)
        centres = rng.integers(60, 196, (5, 32, 16, 3))
        records[modality] = []
        for row in range(size):
            path = folder / f"{modality}_{row:02d}.png"
            if not path.exists():
                noise = rng.integers(-60, 60, (32, 16, 3))
                Image.fromarray((centres[row % 5] + noise).astype(np.uint8)).save(path)
            records[modality].append(ImageRecord(str(path), row % 5, row % 3))
    return records


def pseudo_labels(stage):
    visible, infrared = (torch.arange(n) % 6 - 1 for n in SIZES.values())
    return PseudoLabels(visible, infrared, (torch.arange(SIZES["visible"]) * 7) % 5 if stage == 2 else visible, stage)


@pytest.fixture(autouse=True)
def _usual_arithmetic():
    yield
    torch.set_default_dtype(torch.float32)


def train(folder, stage, replicas=2, augment="workers", wrap=lambda forward: None, device="cpu"):
    """Five steps of one epoch; everything that came of them. `wrap` may change how the model is run. What the device
    augments is read from a cache."""
    torch.set_default_dtype(torch.float64)
    cache = folder / f"cache-{distributed.world()}" if augment == "device" else None
    config = dataclasses.replace(CONFIG, bn_replicas=replicas, augment=augment, image_cache=cache)
    settings, records, labels = config.at(EPOCHS[stage]), images(folder), pseudo_labels(stage)
    labels = PseudoLabels(*(y.to(device) for y in (labels.visible_clusters, labels.infrared, labels.visible)), stage)
    seed_everything(1)
    model = build_model(config.model).to(device)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    forward = ReplicaForward(model, replicas)
    wrap(forward)
    optimizer = make_optimizer(model, config)
    embeddings = {
        m: embed(model, [r.path for r in records[m]], m, batch_size=16, image_cache=cache) for m in records
    }
    memories = build_memories(embeddings["visible"], embeddings["infrared"], labels, settings, config)
    losses = train_epoch(
        forward,
        optimizer,
        Batches(records["visible"], records["infrared"], labels, settings, config, 0),
        labels,
        memories,
        settings,
        config,
    )
    kinds = vars(memories).items()
    return {
        "start": start,
        "model": model.state_dict(),
        "losses": losses,
        "embeddings": {m: tuple(e) for m, e in embeddings.items()},
        "memories": {
            f"{kind} {m} {level}": memory.features for kind, part in kinds for (m, level), memory in part.items()
        },
    }


def labels(stage):
    """Pseudo-labels of embeddings around eleven centres, and for how many rows this process searched."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(11, 24, generator=generator)
    visible, infrared = (
        Embeddings(*(centres[torch.arange(n) % 11] + 0.4 * torch.randn(n, 24, generator=generator) for _ in range(2)))
        for n in (203, 130)
    )
    searched = []

    def counted(features, k, *shared, **targets):
        if shared:  # not the association's
            searched.append(shared[1].stop - shared[1].start)
        return nearest_neighbors(features, k, *shared, **targets)

    with mock.patch.object(sdcl.training.labels, "nearest_neighbors", counted):
        made = make_labels(visible, infrared, CONFIG.at(EPOCHS[stage]), CONFIG)
    return {"labels": (made.visible_clusters, made.infrared, made.visible), "searched": searched}


CASES = {"stage 1": (1, 2), "stage 2": (2, 2), "4 replicas": (1, 4), "on the device": (1, 2, "device")}


def work(rank, folder, port):
    """In one of two processes."""
    join(rank, port)
    distributed.start(PRESETS["demo"])
    results = {name: train(folder, *case) for name, case in CASES.items()}
    results["labels"] = [labels(stage) for stage in EPOCHS]
    with pytest.raises(ValueError, match="not finite"):  # on both: none waits for the other
        shared_search(torch.full((5, 3), torch.nan), 4, "exact")
    results["one row"] = shared_search(torch.eye(1, 3), 4, "exact")
    # one image, two processes
    results["few"] = tuple(embed(build_small(), [images(folder)["visible"][0].path], "visible"))
    torch.save(results, folder / f"rank{rank}.pt")
    distributed.stop()


def build_small():
    torch.set_default_dtype(torch.float64)
    seed_everything(2)
    return build_model(SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    images(folder)
    return folder


@pytest.fixture(scope="module")
def one(folder):
    return {name: train(folder, *case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def two(folder):
    two_processes(work, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def same(got, want, tolerance=1e-5):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(
            got[name], want[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def differs(got, want, least):
    return max(float((got[k] - want[k]).abs().max()) for k in want if want[k].is_floating_point()) > least


@pytest.mark.parametrize("case", sorted(CASES))
def test_two_processes_train_as_one(one, two, case):
    assert differs(one[case]["model"], one[case]["start"], 1e-2)  # there is something to compare
    for result in two:
        same(result[case]["model"], one[case]["model"])  # weights, and replica 0's running statistics
        same(result[case]["memories"], one[case]["memories"])
        assert result[case]["losses"] == pytest.approx(one[case]["losses"], abs=1e-5)


@pytest.mark.parametrize("case", sorted(CASES))
def test_processes_are_equal_to_the_bit(two, case):
    same(two[0][case]["model"], two[1][case]["model"], 0)
    same(two[0][case]["memories"], two[1][case]["memories"], 0)


def test_replicas_stages_and_their_memories_are_told_apart(one):
    assert differs(one["stage 1"]["model"], one["4 replicas"]["model"], 1e-3)
    shared, own = one["stage 2"]["memories"], one["stage 1"]["memories"]
    assert torch.equal(shared["clusters visible deep"], shared["clusters infrared deep"])
    assert not torch.equal(own["clusters visible deep"], own["clusters infrared deep"])
    assert {"neighbor_visible_visible", "neighbor_visible_infrared"} < one["stage 1"]["losses"].keys()
    assert {"neighbor_visible_visible", "neighbor_infrared_visible"} < one["stage 2"]["losses"].keys()


def test_embeddings_are_shared_out_and_gathered_in_order(one, two, folder):
    for result in two:
        for modality, want in one["stage 1"]["embeddings"].items():
            for got, level in zip(result["stage 1"]["embeddings"][modality], want, strict=True):
                torch.testing.assert_close(got, level, rtol=1e-5, atol=1e-5)
        want = embed(build_small(), [images(folder)["visible"][0].path], "visible")
        for got, level in zip(result["few"], want, strict=True):
            torch.testing.assert_close(got, level, rtol=1e-5, atol=1e-5)


def test_processes_share_the_neighbour_search_and_have_the_labels_of_one(two):
    for number, stage in enumerate(EPOCHS):
        want = labels(stage)
        assert want["searched"] == [203, 130] and want["labels"][0].max() >= 5
        for result, rows in zip(two, ([102, 65], [101, 65]), strict=True):
            assert result["labels"][number]["searched"] == rows
            for got, one in zip(result["labels"][number]["labels"], want["labels"], strict=True):
                assert torch.equal(got, one)
    for result in two:  # a process with no row to search for
        rank, similarity = result["one row"]
        assert rank.tolist() == [[0]] and similarity.tolist() == [[1.0]]


class ScatteredOnCpu(nn.Module):
    """What DataParallel does, on one device.

    It scatters the rows of the arguments, runs copies in threads of their own, which share the parameters (gradients
    add up) but not the buffers (the first copy's are the module's), and joins the outputs field by field. As there,
    autocast is switched on in each thread if it is in this one, with that thread's dtype: float16, as on GPUs.
    """

    def __init__(self, module, replicas):
        super().__init__()
        self.module, self.replicas = module, replicas

    def scatter(self, x):
        if isinstance(x, tuple):
            return list(zip(*map(self.scatter, x), strict=True))
        return [None] * self.replicas if x is None else x.chunk(self.replicas)

    def gather(self, *parts):
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)
        joined = [self.gather(*fields) for fields in zip(*parts, strict=True)]
        return type(parts[0])(*joined) if isinstance(parts[0], Embeddings) else tuple(joined)

    def forward(self, *inputs):
        enabled, outputs = torch.is_autocast_enabled("cpu"), [None] * self.replicas

        def run(number, part):
            torch.set_autocast_dtype("cpu", torch.float16)
            with torch.autocast("cpu", enabled=enabled):
                buffers = {name: b.clone() if number else b for name, b in self.module.named_buffers()}
                copy = {**dict(self.module.named_parameters()), **buffers}
                outputs[number] = functional_call(self.module, copy, part)

        for number, part in enumerate(self.scatter(inputs)):
            thread = threading.Thread(target=run, args=(number, part))
            thread.start()
            thread.join()
        return self.gather(*outputs)


def scatter(forward):
    """Has a forward run as under DataParallel, a replica a GPU."""
    forward.network = ScatteredOnCpu(forward.network, forward.model.bn_replicas)
    forward.model.bn_replicas = 1


@pytest.mark.parametrize("case", sorted(CASES))
def test_data_parallel_order_trains_as_one_device(one, folder, case):
    got = train(folder, *CASES[case], wrap=scatter)
    same(got["model"], one[case]["model"])
    same(got["memories"], one[case]["memories"])


def test_bfloat16_under_data_parallel_is_that_of_one_device():
    """Autocast's dtype is each thread's own."""
    images = torch.randn(8, 3, 32, 16), torch.randn(4, 3, 32, 16)
    outs = []
    for wrap in (lambda forward: None, scatter):
        seed_everything(2)
        forward = ReplicaForward(build_model(SMALL).train(), 2, "bf16")
        dtypes = set()
        forward.model.blocks[0].mlp.fc1.register_forward_hook(lambda *args, seen=dtypes: seen.add(args[2].dtype))
        wrap(forward)
        outs.append(forward(*images))
        assert dtypes == {torch.bfloat16}
    for got, want in zip(*outs, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("processes, replicas", [(3, 2), (4, 2), (2, 1), (2, 3)])
def test_processes_that_do_not_go_with_the_replicas_are_refused(monkeypatch, processes, replicas):
    monkeypatch.setattr(distributed, "world", lambda: processes)
    with pytest.raises(UserError, match=f"{processes} processes.*--nproc-per-node {replicas}"):
        ReplicaForward(build_small(), replicas)


def test_a_whole_run_of_two_machines_equals_that_of_one_process(tmp_path):
    for processes in (1, 2):
        folders = ["--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / f"run{processes}")]
        arguments = [*TINY_RUN, "--drop-path", "0.3", *folders]
        if processes == 1:
            train_sdcl.main(arguments)
        else:
            for status, said in two_machines(lambda node: arguments, tmp_path):  # noqa: B023 - at once
                assert status == 0, said
    logs = [
        [json.loads(line) for line in (tmp_path / f"run{n}" / "log.jsonl").read_text().splitlines()] for n in (1, 2)
    ]
    assert [line["stage"] for line in logs[0]] == [1, 2]
    for one, two in zip(*logs, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"seconds"}:
            tolerance = 0 if isinstance(one[name], int) else 1e-4
            assert two[name] == pytest.approx(one[name], abs=tolerance), name
    results = [json.loads((tmp_path / f"run{n}" / "results.json").read_text()) for n in (1, 2)]
    assert results[1]["all_search"] == pytest.approx(results[0]["all_search"], abs=1e-4)
