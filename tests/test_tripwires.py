"""What a user trips over ends in one line that says what is wrong, where, and what to do."""

import dataclasses
import importlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import MODEL, draw_people, make_run, table
from tiny_sets import make_regdb
from tiny_training import in_process

from scripts import compare, export
from sdcl.config import PRESETS
from sdcl.data.readers import regdb
from sdcl.errors import UserError, broken_package, run_program
from sdcl.files import check_writable, write_atomically
from sdcl.frame import cli
from sdcl.frame import results as results_module
from sdcl.frame.cli import parse_test, parse_training
from sdcl.frame.guards import check_finite, usable_labels
from sdcl.frame.method import method_named
from sdcl.frame.results import finish_trials, free_name
from sdcl.frame.run import Run
from sdcl.frame.run_log import read_log, read_results
from sdcl.report import write_report
from sdcl.report.run_files import read_run
from sdcl.settings import Range, option, ranges_of
from sdcl.training.method import METHOD

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = [*sorted(ROOT.glob("*.py")), *(p for p in sorted((ROOT / "scripts").glob("*.py")) if p.stem != "check_env")]
METHODS = [path.stem.removeprefix("train_") for path in sorted(ROOT.glob("train_*.py"))]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def whole(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as a finished run leaves it."""
    return make_run(tmp_path_factory.mktemp("runs") / "whole", people, epochs=2, stage2_from=1)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


# -- ranges -----------------------------------------------------------------------------------------------------------

NUMBERS = [
    ("learning_rate", [-1.0, 0.0, math.nan, math.inf]), ("weight_decay", [-1.0, math.nan]),
    ("sgd_momentum", [-0.1, 1.0, math.nan]), ("crop_padding", [-1, 10**8]), ("embedding_batch", [0, 10**20]),
    ("cluster_momentum", [2.0, -0.1, math.nan]), ("neighbor_threshold", [7.0, -7.0]), ("shallow_weight", [-1.0]),
    ("stage2_from", [-3]), ("temperature", [math.nan, 0.0]), ("steps_stage1", [0, 10**9]), ("epochs", [0]),
    ("eps", [0.0, 1.0, math.nan]), ("seed", [-1, 10**400]), ("workers", [-1]), ("homogeneous_weight", [(1.0, -1.0)]),
    ("synthetic_identities", [(0, 5)]), ("trial", [11]),
]  # fmt: skip
OF_NETWORK = [
    ("drop_path", [2.0, math.nan, -1.0, 1.0]), ("mlp_ratio", [-4.0, math.nan]), ("dim", [0, -32, 10**8]),
    ("image_height", [1_600_000, 0]), ("depth", [1]), ("heads", [0]),
]  # fmt: skip


@pytest.mark.parametrize("name, values", NUMBERS)
def test_a_number_outside_of_its_range_is_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UserError, match=f"{name.replace('_', '-')}.*{re.escape(option(name))}|RegDB"):
            dataclasses.replace(PRESETS["demo"], **{name: value})


@pytest.mark.parametrize("name, values", OF_NETWORK)
def test_so_is_one_of_the_networks(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UserError, match=re.escape(option(name))):
            dataclasses.replace(PRESETS["demo"].model, **{name: value})


def numbers_in(kind: type) -> dict[str, bool]:
    """Number fields of a settings class, nested ones included → whether they are bounded on both sides."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= numbers_in(typing.cast(type, hint))
        elif {int, float} & {hint, *typing.get_args(hint)} and typing.get_origin(hint) is not typing.ClassVar:
            bounds = ranges_of(kind).get(name, Range())
            found[name] = bounds.low > -math.inf and bounds.high < math.inf
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_every_method_is_bounded(name: str) -> None:
    method = method_named(name)
    unbounded = {field for field, bounded in numbers_in(method.settings).items() if not bounded}
    assert unbounded <= {"trial"}  # 1 to 10, or none
    assert len(numbers_in(method.settings)) > 8
    preset = next(iter(method.presets.values()))
    bad = [(preset, "seed", {"seed": -1})]
    if model := getattr(preset, "model", None):
        bad += [(preset, name, {"model": (name, -1)}) for name in ranges_of(type(model)) if name.startswith("image_")]
    for settings, field, change in bad:
        with pytest.raises(UserError, match=re.escape(option(field))):
            nested = {k: dataclasses.replace(model, **dict([v])) for k, v in change.items() if isinstance(v, tuple)}
            dataclasses.replace(settings, **{**change, **nested})


def test_the_test_programs_numbers_too() -> None:
    assert all(numbers_in(cli.TestOptions).values())
    for name, value in (("shots", 0), ("rerank_k1", 0), ("rerank_k2", 10**9), ("rerank_weight", math.nan)):
        with pytest.raises(UserError, match=re.escape(option(name))):
            cli.TestOptions(PRESETS["demo"], checkpoint=Path("x"), **{name: value})


@pytest.mark.parametrize("words", [["--embedding-batch", "1e20"], ["--dim", "1e8"], ["--epochs", "9" * 5000],
                                   ["--eps", "much"], ["--trial"]])  # fmt: skip
def test_what_is_no_number_is_refused_by_the_command_line(words: list[str], capsys) -> None:
    for parse in (lambda: parse_training(["demo", *words], "", PRESETS),
                  lambda: parse_test(["demo", "--checkpoint", "x", *words], "", PRESETS)):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            parse()
        assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# -- advice that works ------------------------------------------------------------------------------------------------


def test_advice_for_a_loss_that_is_not_finite() -> None:
    with pytest.raises(UserError, match=r"epoch 0 .*terms that are not: b\).*first epoch, so start afresh"):
        check_finite({"loss": math.nan, "a": 1.0, "b": math.inf}, 0, 10)
    with pytest.raises(UserError, match="The checkpoint of the epoch before is whole"):
        check_finite({"loss": math.nan}, 1, 10)


def test_keep_labels_is_advised_where_it_helps() -> None:
    with pytest.raises(UserError) as first:
        usable_labels("new", "no cluster", None, "stop")
    assert "keep-labels" not in str(first.value) and "no labels of an epoch before" in str(first.value)
    with pytest.raises(UserError, match="--resume auto --on-degenerate keep-labels"):
        usable_labels("new", "no cluster", "old", "stop")
    assert usable_labels("new", "no cluster", "old", "keep-labels") == "old"
    assert usable_labels("new", None, "old", "stop") == "new"


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.touch()
        with open("/dev/full", "wb") as file:
            torch.save({"x": torch.zeros(100_000)}, file)

    with pytest.raises(UserError, match=r"cannot write .*last\.pth: No space left on device\."):
        write_atomically(tmp_path / "last.pth", write)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_is_known_before_the_work(people: Path, folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(importlib.import_module("test_sdcl"), "test", lambda *_: pytest.fail("embedded"))
    common = ["test", "demo", "--data-dir", people, "--checkpoint", folder / "best.pth", "--output"]
    assert "does not exist. Make it" in in_process(capsys)(*common, folder / "none" / "x.json").error
    assert "it is a folder" in in_process(capsys)(*common, folder).error
    for module, words in (
        (export, ["embeddings", "--checkpoint", folder / "best.pth", "--output", folder / "none" / "x.npz"]),
        (export, ["model", "--checkpoint", folder / "best.pth", "--output", folder / "none" / "x.pt2"]),
        (export, ["labels", folder, "--output", folder / "best.pth"]),
        (compare, [folder, "--output", folder / "none" / "x.png"]),
    ):
        monkeypatch.setattr("sys.argv", ["program.py", *map(str, words)])
        with pytest.raises(UserError, match="does not exist. Make it|cannot make the folder"):
            module.main()
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        write_report(folder)
    with pytest.raises(UserError, match="is a file"):
        check_writable(folder / "best.pth" / "x.json")


# -- RegDB's trials ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    """Trials 1 and 2 finished, 3 under way, of networks that are as they were drawn."""
    root = tmp_path_factory.mktemp("regdb")
    regdb.prepare(make_regdb(root / "data"), progress=False)
    saved = torch.load(whole / "best.pth", weights_only=True)
    settings = dataclasses.replace(PRESETS["regdb"], model=MODEL).to_json()
    for trial in (1, 2, 3):
        (root / "run" / f"trial-{trial}").mkdir(parents=True)
        torch.save(saved | {"trial": trial, "config": settings}, root / "run" / f"trial-{trial}" / "best.pth")
        if trial < 3:
            (root / "run" / f"trial-{trial}" / "results.json").write_text("{}")
    torch.save(saved, root / "of-sysu.pth")
    return root


def test_a_trial_that_is_not_finished_is_named_and_left_out(trials: Path, capsys) -> None:
    run = in_process(capsys)
    tested = run("test", "regdb", "--data-dir", trials / "data", "--workers", 0, "--checkpoint", trials / "run")
    assert tested.status == 0
    assert "no weights of trial 4, 5, 6, 7, 8, 9, 10; the mean is over the other 2" in tested.err
    assert "not finished, so left out: trial 3; the mean is over the other 2" in tested.err
    assert json.loads((trials / "run" / "test-run.json").read_text())["trials"] == 2
    message = run("test", "regdb", "--data-dir", trials / "data", "--checkpoint", trials / "of-sysu.pth").error
    assert "was trained on a set without trials, not on RegDB" in message


def test_the_mean_over_the_trials_is_printed(tmp_path: Path, capsys) -> None:
    config = dataclasses.replace(PRESETS["regdb"], run_dir=tmp_path)
    modes = ("visible_to_thermal", "thermal_to_visible")
    finish_trials(METHOD, config, [1, 2], [table(0.25, modes), table(0.75, modes)])
    out = capsys.readouterr().out
    assert "mean over 2 trials:" in out and "50.00 ± 25.00" in out
    assert json.loads((tmp_path / "results.json").read_text())["visible_to_thermal"]["rank1"] == 0.5


# -- damaged files ----------------------------------------------------------------------------------------------------

LINE = {"epoch": 0, "loss": 1.0, "seconds": {"embed": 1.0}, **table(0.5)}


def damaged(file: str, text: str) -> Any:
    return lambda folder: (folder / file).write_text(text)


def config_with(**changes: Any) -> Any:
    def act(folder: Path) -> None:
        saved = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(saved | changes))
    return act


def checkpoint_with(file: str = "best.pth", **changes: Any) -> Any:
    def act(folder: Path) -> None:
        saved = torch.load(folder / "best.pth", weights_only=True)
        torch.save({k: v(saved[k]) if callable(v) else v for k, v in {**saved, **changes}.items()}, folder / file)
    return act


def swapped(name: str) -> Any:
    """A folder where a file should be."""
    def act(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()
    return act


def sparse(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.to_sparse() if x.dim() == 2 else x for name, x in weights.items()}


OF_RUN = [
    (damaged("results.json", "[]"), "results.json is damaged"), (damaged("results.json", "{}"), "no tables of results"),
    (damaged("results.json", json.dumps(table(0.5) | {"last": {"all_search": {"rank1": "x"}}})), "no tables of res"),
    (damaged("results.json", "[" * 100_000), "results.json is dam"), (swapped("results.json"), "json cannot be read"),
    (damaged("config.json", "\xff"), "config.json is damaged"), (config_with(method=5), "its method is 5"),
    (config_with(method="../x"), "is not a method's name"), (config_with(method="none"), "there is no train_none.py"),
    (config_with(eps="0.6"), "its setting eps is '0.6'"), (config_with(eps=-1), "config.json: eps is -1"),
    (config_with(model=[]), "config"), (config_with(what=1), "does not know"), (swapped("config.json"), "holds no"),
    (damaged("log.jsonl", "x\n" + json.dumps(LINE)), "log.jsonl, line 1: this is no entry"),
    *((damaged("log.jsonl", json.dumps({"epoch": x})), "line 1") for x in ("0", True, None)),
    (damaged("log.jsonl", json.dumps(LINE | {"seconds": 5})), "line 1"), (swapped("log.jsonl"), "holds no log.jsonl"),
    (damaged("log.jsonl", json.dumps(LINE | {"loss": "low"})), "line 1"),
    (damaged("log.jsonl", json.dumps(LINE | {"all_search": {"rank1": None}})), "line 1"),
]  # fmt: skip


@pytest.mark.parametrize("act, message", OF_RUN)
def test_damaged_files_of_a_run_in_reports_and_comparisons(folder: Path, act, message: str) -> None:
    act(folder)
    with pytest.raises(UserError, match=message) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) + str(folder) * ("method" in message)


OF_CHECKPOINT = [
    (checkpoint_with(config={}), "its settings lack"), (checkpoint_with(config=5), "config in it is of another type"),
    (checkpoint_with(config=lambda c: c | {"eps": [1]}), "its setting eps is"),
    (checkpoint_with(config=lambda c: c | {"model": c["model"] | {"dim": "16"}}), "its setting dim is '16'"),
    (checkpoint_with(config=lambda c: c | {"model": c["model"] | {"dim": -16}}), "dim is -16"),
    (checkpoint_with(method="none"), "there is no train_none.py"), (checkpoint_with(method=3), "method in it is of"),
    (checkpoint_with(trial="1"), "trial in it is of another type"), (checkpoint_with(model=sparse), "no plain tensors"),
    (checkpoint_with(model=lambda m: dict.fromkeys(m, 1.0)), "no plain tensors"), (swapped("best.pth"), "is a folder"),
    (damaged("best.pth", "x"), "cannot be read as a weight file"), (damaged("best.pth", ""), "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize("act, message", OF_CHECKPOINT)
def test_damaged_checkpoints_in_tests_and_exports(
    people: Path, folder: Path, capsys, monkeypatch, act: Any, message: str
) -> None:
    act(folder)
    run = in_process(capsys)
    assert message in run("test", "demo", "--data-dir", people, "--checkpoint", folder / "best.pth").error
    words = ["model", "--checkpoint", folder / "best.pth", "--output", folder / "x.pt2"]
    monkeypatch.setattr("sys.argv", ["export.py", *map(str, words)])
    with pytest.raises(UserError, match="folder" if "folder" in message else message):
        export.main()


STATE = {"epoch": 0, "best_epoch": 0, "best_rank1": 0.5, "optimizer": {"state": {}, "param_groups": []}}


@pytest.mark.parametrize("act, message", [
    (checkpoint_with("last.pth", **STATE), "its optimizer does not fit"),
    (checkpoint_with("last.pth", **STATE | {"optimizer": 3}), "optimizer in it is of another type"),
    (checkpoint_with("last.pth", **STATE | {"best_epoch": "x"}), "best_epoch in it is of another type"),
    (swapped("log.jsonl"), "log.jsonl is a folder where a run has a file"),
    (damaged("tensorboard", ""), "tensorboard is a file where a run has a folder"),
    (swapped("best.pth"), "best.pth is a folder where"), (swapped("results.json"), "results.json is a folder where"),
])  # fmt: skip
def test_damaged_files_in_training(whole: Path, folder: Path, act, message: str) -> None:
    act(folder)
    config = dataclasses.replace(read_run(whole).config, resume="auto", run_dir=folder)
    model = METHOD.build(config)
    with pytest.raises(UserError, match=message):
        run = Run(folder, METHOD, config, 0, "made-up")
        run.restore(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))


def test_a_log_may_lack_what_a_kill_cut_off(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:20])
    assert read_log(tmp_path / "log.jsonl") == [LINE]
    (tmp_path / "results.json").write_text(json.dumps(table(0.5)))
    assert read_results(tmp_path / "results.json") == table(0.5)


# -- tables of other tests --------------------------------------------------------------------------------------------


def test_a_table_of_another_test_is_kept(tmp_path: Path) -> None:
    usual = tmp_path / "test-best.json"
    mine = {"images": "a b", "precision": "fp32", "checkpoint": "x"}
    assert free_name(usual, mine) == usual
    usual.write_text(json.dumps(mine | {"all_search": {}}))
    assert free_name(usual, mine) == usual, "the same test once more, of newer weights say"
    for other in ({"images": "c d"}, {"precision": "bf16"}, {"rerank_settings": {"k1": 6}}, {"galleries": "official"}):
        assert free_name(usual, mine | other) == tmp_path / "test-best-2.json"
    (tmp_path / "test-best-2.json").write_text("damaged")
    assert free_name(usual, mine | {"images": "c d"}) == tmp_path / "test-best-3.json"
    assert {"images", "trials", *results_module.SAME_IN_ALL} >= {"images", "precision", "rerank_settings", "galleries"}


@pytest.mark.slow
def test_of_other_people(people: Path, folder: Path, tmp_path: Path, capsys) -> None:
    run, common = in_process(capsys), ["--workers", 0, "--checkpoint", folder / "best.pth"]
    assert run("test", "demo", "--data-dir", people, *common).status == 0
    kept = (folder / "test-best.json").read_text()
    others = shutil.copytree(people, tmp_path / "others")
    image = next((others / "cam3").rglob("*.jpg"))
    for path in (others / "cam3").rglob("*.jpg"):
        path.write_bytes(image.read_bytes() + path.name.encode() * 3)
    second = run("test", "demo", "--data-dir", others, *common)
    assert second.status == 0
    assert "test-best-2.json holds this table (test-best.json, that of another test, is kept)" in second.out
    assert (folder / "test-best.json").read_text() == kept


# -- terminals and environments ---------------------------------------------------------------------------------------


def test_a_terminal_without_these_characters_gets_others(monkeypatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    def main() -> None:
        print("61.35 ± 2.37 ▁█ → …")
        raise UserError(f"caf\xe9 {os.fsdecode(bytes([255]))}.jpg")

    with pytest.raises(SystemExit):
        run_program(main)
    assert out.buffer.getvalue() == b"61.35 +- 2.37 18 -> ...\n"  # type: ignore[attr-defined]
    assert err.buffer.getvalue() == b"error: caf\\xe9 \\udcff.jpg\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_every_program_says_what_is_missing_before_it_imports_it(program: Path) -> None:
    text = program.read_text()
    others = re.search(r"^(import|from) (numpy|torch|PIL|tqdm|sdcl\.(?!startup))", text, re.MULTILINE)
    assert "\nimport sdcl.startup" in text and (not others or text.index("import sdcl.startup") < others.start())


@pytest.mark.parametrize("broken, said", [
    ("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')", "has no torch"),
    ("import none_such", "has no none_such"),
    ("raise ImportError('libcudart.so.99: cannot open', name='torch')", "cannot import torch (libcudart.so.99: cannot"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", "interrupted"),
])  # fmt: skip
def test_imports_that_end_a_program_take_one_line(tmp_path: Path, broken: str, said: str) -> None:
    (tmp_path / "torch.py").write_text(broken)
    command = [sys.executable, str(ROOT / "train_sdcl.py"), "demo"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr
    assert done.returncode == (130 if said == "interrupted" else 2)
    assert said == "interrupted" or "/bin/activate, or " in done.stderr


def test_mistakes_of_the_program_keep_their_traceback() -> None:
    assert broken_package(ImportError("cannot import name 'x'", name="sdcl.frame")) == ""
    assert broken_package(ImportError("no name at all")) == ""
    with pytest.raises(ImportError):
        run_program(lambda: importlib.import_module("sdcl.none_such") and None)
    with pytest.raises(SystemExit):
        run_program(lambda: importlib.import_module("none_such") and None)


def test_arrays_of_another_kind_in_a_weight_file(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be read|holds objects other|not a checkpoint|not a dict"):
        np.save(folder / "x.npy", np.zeros(3))
        export.export_model(folder / "x.npy", "visible", folder / "x.pt2")
