"""A made-up two-modality person data set, drawn by a program: what the demo and the tests live on.

People of some body, hair, clothes and bags walk past six cameras (visible 1, 2, 4, 5; infrared 3, 6) and are cut out by
loose boxes. The same person wears the same in every camera; pose, view, occlusion, light and place differ. Everything
follows from a `SyntheticConfig`; `draw_image` draws any image alone.

    python -m sdcl.data.synthetic sysu data/synthetic     writes a set as files (--help: its options)
"""

from sdcl.data.synthetic.cameras import draw_image
from sdcl.data.synthetic.layouts import (
    write_llcm_layout,
    write_regdb_layout,
    write_source_layout,
    write_sysu_layout,
)
from sdcl.data.synthetic.settings import (
    SyntheticConfig,
    identity_splits,
    image_counts,
    regdb_shape,
    sysu_shape,
)

__all__ = [
    "SyntheticConfig",
    "draw_image",
    "identity_splits",
    "image_counts",
    "regdb_shape",
    "sysu_shape",
    "write_llcm_layout",
    "write_regdb_layout",
    "write_source_layout",
    "write_sysu_layout",
]
