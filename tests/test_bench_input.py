"""The measurement of reading and augmenting runs, on a tiny set, and prints every way."""

import re
import sys

from scripts import bench_input
from sdcl.data.readers import sysu
from sdcl.data.synthetic import SyntheticConfig, write_sysu_layout


def test_the_table_has_every_way_and_its_ratio(tmp_path, monkeypatch, capsys) -> None:
    write_sysu_layout(tmp_path, SyntheticConfig(3, 2, images_per_camera=2, height=32, width=16), workers=1)
    sysu.prepare(tmp_path, progress=False)
    options = {"height": 32, "width": 16, "identities": 2, "instances": 2, "steps": 2, "rounds": 1}
    sizes = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["bench_input.py", "--data", str(tmp_path), *sizes])
    bench_input.main()
    lines = capsys.readouterr().out.splitlines()
    for name in ("files", "cache", "reading, cache", *bench_input.TRAINING):
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        speed, ratio = re.fullmatch(rf"{name} +(\d+) +([\d.]+)x", line).groups()  # type: ignore[union-attr]
        assert int(speed) > 0 and float(ratio) > 0
    firsts = [line for line in lines if re.match(r"(files|augmented in workers, as described) ", line)]
    assert all(line.endswith(" 1.0x") for line in firsts) and len(firsts) == 2
