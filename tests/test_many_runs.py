"""Several seeds of a method, and the table of methods, at tiny size."""

import dataclasses
import json

import pytest
from small_runs import table as made_up
from tiny_sets import TINY_RUN

import train_sdcl
from scripts import seeds, table
from sdcl.errors import UserError
from sdcl.files import write_json
from sdcl.frame.many_runs import Row, mean_and_deviation, results_table
from sdcl.frame.method import method_named

pytestmark = pytest.mark.slow

SMALL = [
    *TINY_RUN[1:], "--synthetic-images", "2", "--epochs", "1", "--eps", "0.5", "--k1", "6", "--min-samples", "2",
]  # fmt: skip


def finished(folder, method, value, **changes):
    """A run folder as far as tables look into it."""
    folder.mkdir(parents=True)
    config = dataclasses.replace(method.presets["demo"], **changes)
    write_json(folder / "config.json", {"method": method.name, **config.to_json()})
    results = {**made_up(value), "last": made_up(value - 0.1), "start": made_up(0.2), "chance": made_up(0.05)}
    write_json(folder / "results.json", results | {"selected_by": config.select})


def cells(text):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {(line[0], line[1]): dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_seeds_run_once_and_their_table_is_mean_and_deviation(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs"
    command = ["demo", *SMALL, "--run-dir", str(folder), "--data-dir", str(tmp_path / "data"), "--seeds"]
    seeds.main([*command, "1", "2"])
    rows = cells(capsys.readouterr().out)
    found = [json.loads((folder / f"seed-{n}" / "results.json").read_text()) for n in (1, 2)]
    a, b = (100 * results["all_search"]["mAP"] for results in found)
    assert a != b
    assert rows["SDCL", "selected"]["all search mAP"] == f"{(a + b) / 2:.1f} ± {abs(a - b) / 2**0.5:.1f}"
    assert rows["SDCL", "selected"]["runs"] == "2" and ("chance", "") in rows
    monkeypatch.setattr(train_sdcl, "main", lambda arguments: pytest.fail("a finished run is trained again"))
    seeds.main([*command, "1", "2"])
    with pytest.raises(pytest.fail.Exception, match="again"):
        seeds.main([*command, "1", "2", "3"])


def test_the_table_trains_a_method_and_its_baseline(tmp_path, capsys):
    command = ["--methods", "sdcl", *SMALL, "--run-dir", str(tmp_path), "--data-seeds", "4"]
    table.main(command)
    rows = cells(capsys.readouterr().out)
    assert list(rows) == [
        ("SDCL, baseline", "selected"),
        ("SDCL, baseline", "last"),
        ("SDCL", "selected"),
        ("SDCL", "last"),
        ("before training", ""),
        ("chance", ""),
    ]
    config = json.loads((tmp_path / "sdcl-baseline" / "seed-1-data-4" / "config.json").read_text())
    assert (config["shallow"], config["cnl"], config["cra"], config["synthetic_seed"]) == (False, False, False, 4)
    assert (tmp_path / "data-4" / "exp" / "test_id.txt").is_file()
    table.main(["--methods", "sdcl", "--table-only", "--run-dir", str(tmp_path)])
    assert cells(capsys.readouterr().out) == rows


def test_each_method_stands_beside_its_own_start(tmp_path):
    sdcl, pic = method_named("sdcl"), method_named("pic")
    same = {"synthetic_identities": (6, 3)}
    finished(tmp_path / "sdcl" / "seed-1-data-0", sdcl, 0.6, **same)
    finished(tmp_path / "sdcl" / "seed-1-data-1", sdcl, 0.7, **same)
    finished(tmp_path / "pic" / "seed-1-data-0", pic, 0.9, **same)
    rows = [row for method in (sdcl, pic) for row in table.rows_of(method)]
    text = results_table(rows, tmp_path)
    assert text.endswith("epochs selected by Rank-1 on the test set.")
    found = cells(text)
    assert found["SDCL", "selected"]["indoor search R1"] == "65.0 ± 7.1"
    assert found["SDCL", "last"]["all search R1"] == "55.0 ± 7.1"
    assert found["SDCL before training", ""]["runs"] == "2"
    assert found["PIC before training", ""]["all search R1"] == "20.0"
    assert found["chance", ""]["runs"] == "3"


def test_each_method_s_way_to_select_an_epoch_is_said(tmp_path):
    sdcl, pic = method_named("sdcl"), method_named("pic")
    finished(tmp_path / "sdcl" / "seed-1", sdcl, 0.6, select="last")
    finished(tmp_path / "pic" / "seed-1", pic, 0.9)
    text = results_table([Row(method.name, method.title, method) for method in (sdcl, pic)], tmp_path)
    assert text.endswith("epochs selected by taking the last (SDCL); Rank-1 on the test set (PIC).")


def test_runs_on_other_people_do_not_stand_in_one_table(tmp_path):
    sdcl, pic = method_named("sdcl"), method_named("pic")
    finished(tmp_path / "sdcl" / "seed-1", sdcl, 0.6, synthetic_identities=(6, 3))
    finished(tmp_path / "pic" / "seed-1", pic, 0.9, synthetic_identities=(9, 3))
    rows = [Row(method.name, method.title, method) for method in (sdcl, pic)]
    with pytest.raises(UserError, match="other data"):
        results_table(rows, tmp_path)


def test_all_methods_with_a_demo_are_found():
    found = [method.name for method in table.methods_here()]
    assert {"sdcl", "pic"} <= set(found) and found == sorted(found)
    demos = [method.presets["demo"] for method in table.methods_here()]
    people = {(c.synthetic_identities, c.synthetic_images, c.drawn_size) for c in demos}
    assert len(people) == 1


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (seeds, ["nowhere"], "'nowhere' is no preset of SDCL: choose sysu"),
        (seeds, ["sysu", "--data-seeds", "1"], "--data-seeds draws synthetic data sets"),
        (seeds, ["sysu", "--table-only"], "holds no finished run"),
        (seeds, ["sysu", "--method", "none_such"], "there is no train_none_such.py"),
        (table, ["--methods", "none_such"], "there is no train_none_such.py"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, program, arguments, message):
    with pytest.raises(UserError, match=message):
        program.main([*arguments, "--run-dir", str(tmp_path)])


def test_mean_and_deviation():
    assert mean_and_deviation([0.5]) == "50.0"
    assert mean_and_deviation([0.5, 0.6, 0.7]) == "60.0 ± 10.0"
