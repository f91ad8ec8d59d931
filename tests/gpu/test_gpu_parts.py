"""What runs on a GPU against the same on the CPU, in float32: steps of both stages, memories, losses, labels."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_device_augment import PADDING, SIZE, VISIBLE, colours, drawn
from test_evaluation import check, flat, naive, problem
from test_train_epoch import CONFIG, SMALL, STAGES, batches, labels_and_memories

from sdcl.clustering import cluster
from sdcl.cnl import neighbor_loss, neighbor_mask
from sdcl.cra import associate
from sdcl.data.augment import device as device_augment
from sdcl.data.augment.device import Draws
from sdcl.data.transforms import normalize_bytes
from sdcl.evaluation import chance, sysu_metrics
from sdcl.memory import ClusterMemory, InstanceMemory
from sdcl.models import build_model, channels_last_stems, compile_parts
from sdcl.training import step
from sdcl.training.replicas import ReplicaForward

CPU = torch.device("cpu")


def close(got, want, tolerance=1e-4):
    """Equal up to a share of the largest value."""
    scale = float(want.abs().max()) or 1.0
    assert float((got.detach().cpu().float() - want.detach().float()).abs().max()) <= tolerance * scale


@contextlib.contextmanager
def no_waiting(device):
    """Whatever makes the host wait for the GPU is an error."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def one_step(device, stage, precision="fp32", prepare=lambda model: None, monkeypatch=None, replicas=2):
    """Everything that comes of a step: embeddings, gradients, memories, mean losses."""
    torch.manual_seed(3)
    labels, memories = labels_and_memories(stage)
    model = build_model(SMALL).to(device)
    prepare(model)
    for memory in {id(m): m for m in (*memories.clusters.values(), *memories.instances.values())}.values():
        memory.to(device)
    forward = ReplicaForward(model, replicas, precision, "none")
    optimizer = step.make_optimizer(model, CONFIG)
    torch.manual_seed(4)
    given = [[x.to(device) if x.is_floating_point() else x for x in batch] for batch in batches(1)]
    losses = {}
    settings = dataclasses.replace(CONFIG.at(STAGES[stage]), steps=1)
    losses = step.train_epoch(forward, optimizer, given, labels, memories, settings, CONFIG)
    kinds = vars(memories).items()
    held = {f"{kind} {key}": m.features for kind, part in kinds for key, m in part.items()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": losses, "memories": held, "gradients": gradients, "buffers": dict(model.named_buffers())}


def compare(got, want, tolerance):
    for name, value in want["losses"].items():
        assert got["losses"][name] == pytest.approx(value, rel=tolerance)
    for kind in ("memories", "buffers"):
        for name, value in want[kind].items():
            close(got[kind][name].float(), value.float(), tolerance)
    # A stem's ReLUs flip on float32's rounding alone, which its gradients show. Some gradients are 0 but for rounding.
    whole = float(torch.cat([g.flatten() for g in want["gradients"].values()]).norm())
    for name, value in want["gradients"].items():
        far = float((got["gradients"][name].cpu().float() - value).norm())
        share = 100 * tolerance if name.startswith("stem") else tolerance
        assert far <= share * max(float(value.norm()), 1e-3 * whole), name


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_is_that_of_the_cpu(gpu, stage):
    compare(one_step(gpu, stage), one_step(CPU, stage), 1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_in_bfloat16_stays_near_float32(gpu, stage):
    """bfloat16 keeps 8 bits: losses within 5 %, gradients in the direction of float32's."""
    got, want = one_step(gpu, stage, "bf16"), one_step(CPU, stage)
    for name, value in want["losses"].items():
        assert got["losses"][name] == pytest.approx(value, rel=0.05), name
    flat = [torch.cat([r["gradients"][n].cpu().flatten() for n in want["gradients"]]) for r in (got, want)]
    assert float(F.cosine_similarity(*flat, dim=0)) > 0.98


@pytest.mark.parametrize("saving", [{"gradient_checkpointing": True}, {"accumulate": 3}])
def test_saving_memory_is_no_other_step(gpu, saving):
    def prepare(model):
        for name, value in saving.items():
            setattr(model, name, value)

    compare(one_step(gpu, 1, prepare=prepare), one_step(CPU, 1), 1e-4)


def test_channels_last_is_no_other_step(gpu):
    compare(one_step(gpu, 1, prepare=channels_last_stems), one_step(CPU, 1), 1e-4)


def test_a_compiled_step_is_no_other_step(gpu):
    if gpu.type == "cpu":
        pytest.skip("compiling for the CPU takes minutes")
    compare(one_step(gpu, 1, prepare=compile_parts), one_step(CPU, 1), 1e-3)


def test_no_step_waits_for_the_gpu(gpu):
    labels, memories = labels_and_memories(1)
    for memory in (*memories.clusters.values(), *memories.instances.values()):
        memory.to(gpu)
    model = build_model(SMALL).to(gpu)
    forward, optimizer = ReplicaForward(model, 2, "fp32", "none"), step.make_optimizer(model, CONFIG)
    given = [[x.to(gpu) if x.is_floating_point() else x for x in batch] for batch in batches(3)]
    arguments = (labels, memories, dataclasses.replace(CONFIG.at(10), steps=100), CONFIG)
    step.train_epoch(forward, optimizer, given[:1], *arguments)
    with no_waiting(gpu):
        assert step.train_epoch(forward, optimizer, given, *arguments) == {}


def test_memories_move_as_on_the_cpu(gpu):
    rows = torch.tensor([3, 1, 3, 3, 0, 1])
    x, features = torch.randn(6, 32), torch.randn(5, 32)
    results = []
    for device in (gpu, CPU):
        leaf = x.to(device).requires_grad_()
        clusters, instances = ClusterMemory(features.to(device), 0.1), InstanceMemory(features.to(device))
        loss = clusters(leaf, rows)
        instances.update(leaf.detach(), rows)
        loss.backward()
        results.append([loss, leaf.grad, clusters.features, instances.features])
    for got, want in zip(*results, strict=True):
        close(got, want, 1e-5)


def people(n, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n // 20, width, generator=generator)[torch.arange(n) % (n // 20)]
    return F.normalize(centres + 0.5 * torch.randn(n, width, generator=generator), dim=1)


def test_neighbour_losses_are_those_of_the_cpu(gpu):
    anchors, targets, x = people(64), people(2000, seed=0), torch.randn(64, 64)
    results = []
    for device in (gpu, CPU):
        a, t, leaf = anchors.to(device), targets.to(device), x.to(device).requires_grad_()
        mask = neighbor_mask(a, a.flip(1), t, t.flip(1))
        loss = neighbor_loss(leaf, t, mask)
        loss.backward()
        results.append((mask, loss, leaf.grad))
    assert float((results[0][0].cpu() != results[1][0]).float().mean()) < 1e-4  # similarities at the very threshold
    close(results[0][1], results[1][1])
    close(results[0][2], results[1][2], 1e-3)


def test_association_gives_the_labels_of_the_cpu(gpu):
    embeddings = [people(n, seed=seed) for n in (600, 400) for seed in (1, 2)]
    inputs = [*embeddings, torch.arange(400) % 30 - 1]
    want = associate(*inputs)
    assert torch.equal(associate(*(x.to(gpu) for x in inputs)).cpu(), want)


@pytest.mark.parametrize("n", [300, 9000])
def test_clustering_gives_the_labels_of_the_cpu(gpu, n):
    features = people(n)
    want = cluster(features)
    assert want.max() > n // 40
    np.testing.assert_array_equal(cluster(features.to(gpu)), want)


def test_augmented_views_are_those_of_the_cpu_and_nothing_waits(gpu):
    images, draws = colours(32), drawn(32, VISIBLE)
    expected = device_augment.augment(images, draws, PADDING)
    moved = images.to(gpu), Draws(*(x.to(gpu) for x in draws))
    device_augment.augment(*moved, PADDING)
    with no_waiting(gpu):
        views = device_augment.augment(*moved, PADDING)
        device_augment.draw(32, *SIZE, PADDING, VISIBLE, torch.Generator(gpu).manual_seed(0))
    torch.testing.assert_close(views.cpu(), expected, rtol=0, atol=1e-4)


def test_every_byte_is_normalised_as_on_the_cpu(gpu):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert torch.equal(normalize_bytes(pixels.to(gpu)).cpu(), normalize_bytes(pixels))


def test_metrics_are_those_of_naive_loops(gpu):
    s, qi, gi, qc, gc = (torch.from_numpy(x).to(gpu) for x in problem(6, 50, 80, 12))
    want = naive(*(x.cpu().numpy() for x in (s, qi, gi, qc, gc)))
    check(sysu_metrics(s, qi, gi, qc, gc), want)
    check(sysu_metrics(s, qi.cpu().numpy(), gi.cpu(), qc, gc.tolist()), want)
    np.testing.assert_array_equal(flat(chance(qi, gi, qc, gc)), flat(chance(*(x.cpu() for x in (qi, gi, qc, gc)))))
