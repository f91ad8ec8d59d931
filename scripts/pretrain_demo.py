"""Makes the demo's initial weights: self-supervised, on unlabelled images of other synthetic people than the demo's.

    python scripts/pretrain_demo.py --output sdcl/assets/demo_backbone.pth

What ICS weights are to the published runs, these are to the demo: they know people, but no infrared images.
Discrimination of tracks: two visible images of one person from *one camera*, as a tracker follows them there, agree;
all other tracks in the batch differ. Nobody is known from one camera to the next. The result has the form of a backbone
file (`teacher` entry), which `load_backbone` takes like any other.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sdcl.startup  # noqa: F401  # first: it tells what is missing

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from sdcl.config import PRESETS  # noqa: E402
from sdcl.data.synthetic.cameras import draw_image  # noqa: E402
from sdcl.data.synthetic.settings import VISIBLE_CAMERAS, SyntheticConfig  # noqa: E402
from sdcl.data.transforms import MEAN, STD, RandomErasing, exchange_visible  # noqa: E402
from sdcl.errors import run_program  # noqa: E402
from sdcl.files import write_atomically  # noqa: E402
from sdcl.models import SDCLModel, build_model, published_state_dict  # noqa: E402
from sdcl.seeds import seed_everything  # noqa: E402


class Views(Dataset):
    """Of each image a random view and one of another image of its track, float32 [2, 3, H, W]; and the track's number.
    A track is `images` pictures in a row."""

    def __init__(self, pictures: list[np.ndarray], images: int, transform: v2.Transform) -> None:
        self.pictures, self.images, self.transform = [Image.fromarray(p) for p in pictures], images, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        track, place = divmod(index, self.images)
        other = (place + 1 + int(torch.randint(self.images - 1, ()))) % self.images
        views = [self.transform(self.pictures[track * self.images + at]) for at in (place, other)]
        return torch.stack(views), track


def draw_people(config: SyntheticConfig, images: int) -> list[np.ndarray]:
    """`images` pictures of each synthetic person and visible camera; who is seen by two cameras is not told."""
    wanted = [
        (identity, camera, image)
        for identity in range(1, config.train_identities + 1)
        for camera in VISIBLE_CAMERAS
        for image in range(images)
    ]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(_draw, config), wanted, chunksize=64))


def _draw(config: SyntheticConfig, place: tuple[int, int, int]) -> np.ndarray:
    return draw_image(config, *place)


def view_transform(height: int, width: int, padding: int) -> v2.Transform:
    """Views that keep a person recognisable by layout and pattern, at least as hard as those that SDCL trains on."""
    return v2.Compose(
        [
            v2.RandomResizedCrop((height, width), scale=(0.7, 1.0), ratio=(0.4, 0.65)),
            v2.Pad(padding),  # with the black borders that SDCL's random crops have, too
            v2.RandomCrop((height, width)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.5, 0.5, 0.5, 0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            RandomErasing(),
            v2.RandomApply([exchange_visible], p=0.5),
        ]
    )


def discrimination_loss(z: Tensor, track: Tensor, temperature: float) -> Tensor:
    """InfoNCE of z [2B, d], view 1 of all images, then view 2; candidates are a row's other view and the rows of other
    tracks.

    track: [B] int64.
    """
    z, rows = F.normalize(z, dim=1), torch.arange(2 * len(track), device=z.device)
    partner, track = rows.roll(len(track)), track.repeat(2)
    candidate = track[:, None] != track
    candidate[rows, partner] = True
    return F.cross_entropy((z @ z.t() / temperature).masked_fill(~candidate, float("-inf")), partner)


def pretrain(model: SDCLModel, data: Views, epochs: int, batch: int, rate: float, temperature: float) -> None:
    """Trains the visible stem, all blocks and the deep head; the others become their copies."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05)
    loader = DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(loader), pct_start=0.1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for views, track in loader:  # [B, 2, 3, H, W], [B]
            x = views.transpose(0, 1).flatten(0, 1).to(device)  # view 1 of all, then view 2
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # slow elsewhere
                z = model(visible=x).deep
            loss = discrimination_loss(z.float(), track.to(device), temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach().item()
        print(
            f"epoch {epoch + 1}/{epochs} loss {total / len(loader):.3f} {time.perf_counter() - start:.0f} s", flush=True
        )


def backbone_entries(model: SDCLModel) -> dict[str, Tensor]:
    """The tensors of a backbone file: one stem, all blocks and the norm, as in files of published weights.

    A backbone has no BatchNorm after its norm, but this one was trained with it: its running statistics and weights go
    into the norm's own weights. Without them all embeddings share a large mean, and their cosines say little.
    """
    others = ("base.patch_embed2.", "base.fc.", "base.decoder_norm.")
    entries = {
        f"backbone.{name.removeprefix('base.')}": t
        for name, t in published_state_dict(model).items()
        if name.startswith("base.") and not name.startswith(others)
    }
    bn = {name: t.detach().cpu() for name, t in model.deep_head.bn.state_dict().items()}
    scale = bn["weight"] / (bn["running_var"] + model.deep_head.bn.eps).sqrt()
    entries["backbone.norm.weight"] = entries["backbone.norm.weight"] * scale
    entries["backbone.norm.bias"] = (entries["backbone.norm.bias"] - bn["running_mean"]) * scale
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("demo", "demo-large"), default="demo", help="network (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="the backbone file to write")
    parser.add_argument("--identities", type=int, default=300, help="people to draw (%(default)s)")
    parser.add_argument("--images", type=int, default=4, help="images of each track, at least 2 (%(default)s)")
    parser.add_argument(
        "--data-seed", type=int, default=1_000_001, help="seed of the people, far from those of the demo (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=15, help="passes over their images (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (%(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="AdamW's highest learning rate (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the contrastive loss (%(default)s)")
    a = parser.parse_args()
    shape = PRESETS[a.preset].model
    seed_everything("demo backbone", a.data_seed)
    people = SyntheticConfig(
        train_identities=a.identities,
        test_identities=1,
        seed=a.data_seed,
        height=shape.image_height,
        width=shape.image_width,
        # harder than the demo's own pictures, so that the weights are no more at home there than need be
        view_range=1.0,
        occlusion=0.25,
        camera_strength=1.0,
        crop_jitter=1.0,
    )
    transform = view_transform(people.height, people.width, PRESETS[a.preset].crop_padding)
    data = Views(draw_people(people, a.images), a.images, transform)
    print(f"{len(data)} visible images in tracks of {a.images}", flush=True)
    model = build_model(type(shape)(**{**vars(shape), "pretrained": None}))
    pretrain(model, data, a.epochs, a.batch, a.rate, a.temperature)
    a.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(a.output, lambda p: torch.save({"teacher": backbone_entries(model)}, p))
    print(f"{a.output}: {a.output.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    run_program(main)
