"""Makes the initial weights of CCLNet's demo: a small image network of CLIP's shape, and no text encoder.

    python scripts/pretrain_demo_clip.py --output sdcl/assets/demo_clip.pth

An honest start of the same kind as SDCL's demo has (`scripts/pretrain_demo.py`, whose people and loss these are):
tracks of other drawn people than the demo's, in visible light alone, no infrared image, nobody known from one camera to
the next; the views are those of CCLNet's training. Features and projections each discriminate tracks. Text plays no
part, so unlike CLIP's the projections know no language; the demo's text encoder has random weights, which give clusters
different sentences and no meaning. The file holds CLIP's names (`visual.…`) in half precision.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import sdcl.startup  # noqa: E402, F401  # first: it tells what is missing

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402
from pretrain_demo import Views, discrimination_loss, draw_people  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from sdcl.cclnet.model import ImageNetwork  # noqa: E402
from sdcl.cclnet.network import Bottleneck, generalised_mean  # noqa: E402
from sdcl.cclnet.presets import PRESETS  # noqa: E402
from sdcl.cclnet.views import TrainingView  # noqa: E402
from sdcl.data.synthetic.settings import SyntheticConfig  # noqa: E402
from sdcl.errors import run_program  # noqa: E402
from sdcl.files import write_atomically  # noqa: E402
from sdcl.seeds import seed_everything  # noqa: E402


def pretrain(network: ImageNetwork, data: Views, epochs: int, batch: int, rate: float, temperature: float) -> None:
    """Trains the visible stem, the trunk and the attention pooling; features and projections are compared normalised by
    batch statistics, which `absorb` then takes into the weights. The BatchNorm1d of CCLNet plays no part."""
    parts = (network.stem_visible, network.trunk, network.attnpool)
    norms = [nn.BatchNorm1d(n, affine=False) for n in (network.config.dim, network.config.projection)]
    optimizer = torch.optim.AdamW([p for part in parts for p in part.parameters()], rate, weight_decay=0.05)
    loader = DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(loader), pct_start=0.1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).train()
    for norm in norms:
        norm.to(device)
    for epoch in range(epochs):
        start, totals = time.perf_counter(), torch.zeros(2)
        for views, track in loader:  # [B, 2, 3, H, W], [B]
            x = views.transpose(0, 1).flatten(0, 1).to(device)  # view 1 of all, then view 2
            maps = network.trunk(network.stem_visible(x))
            vectors = generalised_mean(maps), network.attnpool(maps)
            apart = (norm(z) for norm, z in zip(norms, vectors, strict=True))
            losses = torch.stack([discrimination_loss(z, track.to(device), temperature) for z in apart])
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            optimizer.step()
            schedule.step()
            totals += losses.detach().cpu()
        features, projections = (totals / len(loader)).tolist()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{epochs} features {features:.3f} projections {projections:.3f} {seconds:.0f} s",
              flush=True)  # fmt: skip
    absorb(network, *norms)


@torch.no_grad()
def absorb(network: ImageNetwork, of_features: nn.BatchNorm1d, of_projections: nn.BatchNorm1d) -> None:
    """Makes the network give what the normalisations made of its output: projections exactly, features up to their
    mean, since they are not negative."""
    scale = _scale(of_features)
    block, pool = network.trunk.layer4[-1], network.attnpool
    assert isinstance(block, Bottleneck) and block.downsample is not None, "its shortcut must have weights of its own"
    for norm in (block.bn3, block.downsample[1]):
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight.mul_(scale)
        norm.bias.mul_(scale)
    for layer in (pool.q_proj, pool.k_proj, pool.v_proj):
        layer.weight.div_(scale)
    pool.positional_embedding.mul_(scale)
    scale, mean = _scale(of_projections), of_projections.running_mean
    assert mean is not None
    pool.c_proj.weight.mul_(scale[:, None])
    pool.c_proj.bias.sub_(mean).mul_(scale)


def _scale(norm: nn.BatchNorm1d) -> Tensor:
    assert norm.running_var is not None
    return (norm.running_var + norm.eps).rsqrt()


def clip_entries(network: ImageNetwork) -> dict[str, Tensor]:
    """The visible stem, trunk and attention pooling by CLIP's names, floating-point numbers in half precision."""
    prefixes = {"stem_visible.": "visual.", "trunk.": "visual.", "attnpool.": "visual.attnpool."}
    return {
        theirs + name.removeprefix(ours): x.cpu().half() if x.is_floating_point() else x.cpu()
        for name, x in network.state_dict().items()
        for ours, theirs in prefixes.items()
        if name.startswith(ours)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--identities", type=int, default=160, help="people to draw (%(default)s)")
    parser.add_argument("--images", type=int, default=4, help="images of each track, at least 2 (%(default)s)")
    parser.add_argument(
        "--data-seed", type=int, default=1_000_001, help="seed of the people, far from those of the demo (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=8, help="passes over their images (%(default)s)")
    parser.add_argument("--batch", type=int, default=48, help="images a step (%(default)s)")
    parser.add_argument("--rate", type=float, default=2e-3, help="AdamW's highest learning rate (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the contrastive loss (%(default)s)")
    a = parser.parse_args()
    config = PRESETS["demo"]
    seed_everything("demo clip", a.data_seed)
    people = SyntheticConfig(
        train_identities=a.identities,
        test_identities=1,
        seed=a.data_seed,
        height=config.image_size[0],
        width=config.image_size[1],
        # harder than the demo's own pictures, so that the weights are no more at home there than need be
        view_range=1.0,
        occlusion=0.25,
        camera_strength=1.0,
        crop_jitter=1.0,
    )
    view = TrainingView("visible", config.image_size, config.crop_padding)
    data = Views(draw_people(people, a.images), a.images, lambda image: view(np.asarray(image)))
    print(f"{len(data)} visible images in tracks of {a.images}", flush=True)
    network = ImageNetwork(config.model)
    network.initialise()
    pretrain(network, data, a.epochs, a.batch, a.rate, a.temperature)
    a.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(a.output, lambda p: torch.save(clip_entries(network), p))
    print(f"{a.output}: {a.output.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    run_program(main)
