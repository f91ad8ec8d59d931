"""SYSU-MM01, folder by folder, against the list that comes with it.

`exp/rand_perm_cam.mat` holds an order of the images of every identity at every camera, so it is a complete inventory of
the released data set: what a copy lacks is found exactly, not by a total.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from sdcl.data import sysu
from sdcl.data.records import IMAGE_SUFFIXES, list_names
from sdcl.errors import UserError
from sdcl.evaluation import _official_orders

LIST = os.path.join("exp", "rand_perm_cam.mat")
NAMED = 5  # differing folders that a message names


@dataclass(frozen=True)
class Inventory:
    """folders: identities at cameras that were compared. differing: `cam3/0006` → (images there, images listed)."""

    folders: int
    differing: dict[str, tuple[int, int]]

    @property
    def message(self) -> str:
        """What differs, in one line; empty when nothing does."""
        if not self.differing:
            return ""
        first = [f"{name} ({n} of {listed})" for name, (n, listed) in list(self.differing.items())[:NAMED]]
        more = f" and {len(self.differing) - NAMED:,} more" if len(self.differing) > NAMED else ""
        return (
            f"{len(self.differing):,} of {self.folders:,} folders do not hold as many images as {LIST} lists: "
            f"{', '.join(first)}{more}; copy them again from the release"
        )


def take_inventory(data_dir: str | os.PathLike[str]) -> Inventory | None:
    """Number of images of every listed identity at every camera beside the list's; None where the list is not there.

    The identities are those of the id lists: other folders take no part. Raises UserError for a damaged list, and for
    id lists as `sysu.read_ids` does.
    """
    file = Path(data_dir) / LIST
    if not file.is_file():
        return None
    try:
        order = _official_orders(file)
    except ValueError as error:
        raise UserError(str(error)) from None
    identities = sorted({i for part in ("train", "val", "test") for i in sysu.read_ids(data_dir, f"{part}_id.txt")})
    places = {f"cam{c}/{i:04d}": len(order(i, c, 0)) for c in range(1, 7) for i in identities}
    found = {place: (_images(Path(data_dir, place)), listed) for place, listed in places.items()}
    seen = {place: counts for place, counts in found.items() if any(counts)}
    return Inventory(len(seen), {place: counts for place, counts in seen.items() if counts[0] != counts[1]})


def _images(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(name.lower().endswith(IMAGE_SUFFIXES) for name in list_names(folder))
