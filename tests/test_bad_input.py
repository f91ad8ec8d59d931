"""Bad input of every kind ends the programs in one line that says what, where and what to do, and in a status."""

import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_sets import remove, write
from tiny_training import ROOT, Result, in_process, settings

from sdcl.config import Config, ModelConfig
from sdcl.data.readers import regdb, sysu
from sdcl.data.synthetic import SyntheticConfig, write_regdb_layout, write_sysu_layout
from sdcl.frame.checkpoints import pack, save_checkpoint
from sdcl.models import build_model

PEOPLE = SyntheticConfig(4, 3, images_per_camera=2, height=32, width=16, absence=0.0)
MODEL = ModelConfig(image_height=32, image_width=16, dim=32, depth=2, heads=2, drop_path=0.0)
TRAINING_IMAGES = {"visible": 32, "infrared": 16}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny set in each layout, prepared; of RegDB's trials the second alone, which the tests train and test."""
    root = tmp_path_factory.mktemp("drawn")
    write_sysu_layout(root / "sysu", PEOPLE, workers=1, progress=False)
    sysu.prepare(root / "sysu", progress=False)
    write_regdb_layout(root / "regdb", PEOPLE, workers=1, progress=False)
    regdb.prepare(root / "regdb", progress=False)
    for trial in {*range(1, 11)} - {2}:
        for modality in ("rgb_modify", "ir_modify"):
            shutil.rmtree(root / "regdb" / modality / str(trial))
    return {"sysu": root / "sysu", "regdb": root / "regdb"}


class Copies(dict[str, Path]):
    """Of each set the copy that is asked for, made then."""

    def __init__(self, originals: dict[str, Path], folder: Path) -> None:
        self.originals, self.folder = originals, folder

    def __missing__(self, name: str) -> Path:
        self[name] = shutil.copytree(self.originals[name], self.folder / name)
        return self[name]


@pytest.fixture
def data(drawn: dict[str, Path], tmp_path: Path) -> Copies:
    """The sets, to be damaged."""
    return Copies(drawn, tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> Callable[..., Result]:
    """run(program, preset, options…) in an empty working folder, so that no default folder exists."""
    monkeypatch.chdir(tmp_path)
    return in_process(capsys)


def train(run, folder: Path, *options: object, preset: str = "demo", **changes: object) -> Result:
    base = {"data_dir": folder, "run_dir": folder.parent / "run", "epochs": 1, "steps_stage1": 1}
    extra = ["--no-published-counts", "--trial", 2] if preset == "regdb" else []
    return run("train", preset, *settings(**{**base, **changes}), *extra, *options)


def checkpoint(path: Path, model: ModelConfig = MODEL, trial: int = 0, **changes: object) -> Path:
    config = Config(dataset="sysu", data_dir=Path("d"), run_dir=Path("r"), model=model)
    torch.manual_seed(0)
    packed = pack(
        build_model(model), config, method="sdcl", epoch=1, trial=trial, fingerprint="f", metrics={"rank1": 0.5}
    )
    save_checkpoint(path, {k: v for k, v in (packed | changes).items() if v is not None})
    return path


# -- the data set -----------------------------------------------------------------------------------------------------


def empty(relative: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        remove(relative)(root)
        (root / relative).mkdir()
    return act


def file_instead(relative: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        remove(relative)(root)
        (root / relative).write_text("a file")
    return act


TRAIN = "rgb_modify/bounding_box_train"
TRIAL = "ir_modify/2/bounding_box_train"
BAD_SETS = [
    ("demo", lambda root: shutil.rmtree(root), "cam1.* not found; put SYSU-MM01 as released .*--data-dir .*demo.sh"),
    ("demo", remove("cam3"), "cam3 not found"),
    ("demo", remove("exp/test_id.txt"), "test_id.txt: no such file; .*copy it there"),
    ("demo", write("exp/test_id.txt", "1,two"), "test_id.txt: must be one line of ids .*'two'; restore"),
    ("demo", write("exp/train_id.txt", "../../etc"), "train_id.txt: must be one line of ids .*'../../etc'"),
    ("demo", write("exp/train_id.txt", ""), "train_id.txt: must be one line"),
    ("demo", write("exp/val_id.txt", "77"), "name id 0077, which has no image .*incomplete"),
    ("demo", remove("ir_modify"), "ir_modify/.*no prepared training images; run `python prepare_sysu.py"),
    ("demo", empty(TRAIN), "bounding_box_train: the folder holds no image; delete it"),
    ("demo", file_instead(TRAIN), "bounding_box_train: this is a file, a folder is needed here"),
    ("demo", file_instead("cam2"), "cam2: this is a file"),
    ("demo", write(TRAIN + "/notes.txt", "x"), "notes.txt: the name is not of the form <id>_c<camera>_<image>"),
    ("regdb", lambda root: shutil.rmtree(root), "put RegDB as released .*--data-dir .*demo.sh|no prepared training"),
    ("regdb", remove("idx/test_thermal_2.txt"), "test_thermal_2.txt: no such file"),
    ("regdb", write("idx/test_visible_2.txt", ""), "test_visible_2.txt: the list is empty; restore"),
    ("regdb", write("idx/test_visible_2.txt", "../../../etc/passwd 1"), "line 1: .* leads out of .*; restore"),
    ("regdb", write("idx/test_visible_2.txt", "/etc/passwd 1"), "line 1: .* leads out of .*; restore"),
    ("regdb", write("idx/test_visible_2.txt", "Visible/none.bmp 1"), "1 of 1 listed images do not exist"),
    ("regdb", write("idx/test_visible_2.txt", "Visible"), "line 1: must read `path.bmp label`"),
    ("regdb", remove(TRIAL), "ir_modify/2/.*run `python prepare_regdb.py"),
]


@pytest.mark.parametrize(("preset", "damage", "message"), BAD_SETS)
def test_bad_data_sets(run, data, preset: str, damage: Callable[[Path], None], message: str) -> None:
    root = data["sysu" if preset == "demo" else preset]
    damage(root)
    error = train(run, root, preset=preset).error
    assert re.search(message, error), error
    assert str(root) in error
    assert not (root.parent / "run").exists(), "refused before anything is written"


def test_lists_of_other_identities_have_no_hit(run, data) -> None:
    """Query and gallery lists that do not belong together are refused before training, not scored 0 after it."""
    path = data["regdb"] / "idx/test_thermal_2.txt"
    path.write_text(re.sub(r" (\d+)$", r" 9\1", path.read_text(), flags=re.MULTILINE))
    assert "no image of a query's identity in a gallery" in train(run, data["regdb"], preset="regdb").error


# -- images -----------------------------------------------------------------------------------------------------------


def images_of(root: Path, preset: str, kind: str) -> list[Path]:
    """Two files that training or test reads."""
    if kind == "training":
        folder = root / ("rgb_modify/2/bounding_box_train" if preset == "regdb" else TRAIN)
        return sorted(folder.iterdir())[:2]
    if preset == "regdb":
        return [root / line.split()[0] for line in (root / "idx/test_visible_2.txt").read_text().splitlines()[:2]]
    identity = min((root / "exp/test_id.txt").read_text().strip().split(","), key=int)
    return sorted((root / f"cam3/{int(identity):04d}").iterdir())[:2]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["demo", "regdb"])
@pytest.mark.parametrize("kind", ["training", "test"])
def test_unreadable_images(run, data, preset: str, kind: str) -> None:
    """One truncated, one no image: named and counted, before training; left out if that is asked for."""
    root = data["sysu" if preset == "demo" else preset]
    truncated, other = images_of(root, preset, kind)
    whole = truncated.read_bytes()
    truncated.unlink()  # a hard link: its other name stays whole
    truncated.write_bytes(whole[: len(whole) // 2])
    other.unlink()
    other.write_text("this is not an image")

    error = train(run, root, preset=preset).error
    assert re.search(rf"2 of \d+ {kind} images cannot be read", error) and "--skip-unreadable" in error
    assert str(truncated) in error and str(other) in error
    trained = train(run, root, "--skip-unreadable", preset=preset)
    assert trained.status == 0, trained.err
    warning = next(line for line in trained.err.splitlines() if line.startswith("warning: 2 of "))
    assert str(truncated) in warning and str(other) in warning and "left out" in warning
    if kind == "training" and preset == "demo":
        assert f"{TRAINING_IMAGES['visible'] - 2} visible and {TRAINING_IMAGES['infrared']} infrared" in trained.out

    best = root.parent / "run" / ("trial-2/best.pth" if preset == "regdb" else "best.pth")
    trial = ["--trial", 2] if preset == "regdb" else []
    command = ["test", preset, "--data-dir", root, "--workers", 0, "--checkpoint", best, *trial]
    if kind == "test":
        assert "2 of " in run(*command).error
    tested = run(*command, "--skip-unreadable")
    assert tested.status == 0 and "trained on other images" not in tested.out + tested.err
    assert ("warning: 2 of " in tested.err) == (kind == "test")


def test_many_unreadable_images_and_none_left(run, data) -> None:
    for path in (data["sysu"] / "ir_modify/bounding_box_train").iterdir():
        path.unlink()
        path.write_text("not an image")
    message = train(run, data["sysu"]).error
    assert "16 of 48 training images cannot be read" in message and "and 6 more" in message
    assert "No infrared image is left" in train(run, data["sysu"], "--skip-unreadable").error


# -- settings ---------------------------------------------------------------------------------------------------------

BAD_SETTINGS = [
    ({"image_height": 100}, "image-height is 100: it must be a multiple of 16 .*such as 96"),
    ({"image_width": 8}, "image-width is 8: it must be a multiple of 16 .*such as 16"),
    ({"heads": 3}, r"heads is 3: it must divide dim \(32\)"),
    ({"depth": 1}, "depth is 1: --depth takes a number at least 2"),
    ({"eps": 1.5}, "eps is 1.5: --eps takes a number above 0 and below 1"),
    ({"k1": 0}, "k1 is 0: --k1 takes a number at least 1"),
    ({"min_samples": 0}, "min-samples is 0"),
    ({"epochs": 0}, "epochs is 0: --epochs takes a number at least 1"),
    ({"steps_stage2": 0}, "steps-stage2 is 0: --steps-stage2 takes"),
    ({"temperature": 0}, "temperature is 0.0: --temperature takes a number above 0"),
    ({"workers": -1}, "workers is -1"),
    ({"embedding_batch": 0}, "embedding-batch is 0"),
    ({"lr_step": 0}, "lr-step is 0"),
    ({"instances": 0}, "instances is 0: --instances takes a number at least 1"),
    ({"identities": 1, "instances": 2}, "a batch of 1 x 2 images is too small for 2 batch-normalisation replicas"),
    ({"identities": 3, "instances": 3}, "= 9 images does not divide into 2 equal batch-normalisation replicas"),
    ({"instances": 18}, "--instances 18 is more than the 16 infrared training images in .*sysu: lower it"),
    ({"identities": 10}, "--identities 10 is more than the 8 clusters of two images that 16 infrared"),
    ({"trial": 3}, "trial belongs to RegDB alone"),
    ({"pretrained": "none.pth"}, "no weight file at none.pth"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS, ids=lambda x: " ".join(x) if isinstance(x, dict) else "")
def test_bad_settings(run, drawn, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    error = train(run, drawn["sysu"], run_dir=tmp_path / "run", **changes).error
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "last.pth").exists()


def test_bad_trial(run) -> None:
    assert "RegDB has trials 1 to 10" in run("train", "regdb", "--trial", 11).error


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["usage", "sysu|regdb|llcm|folder|demo"]),
    (["market"], ["'market' is no preset", "sysu, regdb, llcm, folder, demo"]),
    (["demo", "--epss", "0.4"], ["--epss"]),
    (["demo", "--eps", "much"], ["--eps", "much"]),
    (["demo", "--on-degenerate", "pray"], ["pray", "keep-labels"]),
    (["demo", "stray"], ["stray"]),
])  # fmt: skip
def test_unknown_options(run, arguments: list[str], words: list[str]) -> None:
    """The command line names what it does not know, on stderr, with status 2 (in a box, for options)."""
    for program in ("train", "test"):
        checkpoint = ["--checkpoint", "best.pth"] if program == "test" and len(arguments) > 1 else []
        result = run(program, *arguments, *checkpoint)
        assert result.status == 2 and result.out == "" and "Traceback" not in result.err
        assert all(word in result.err for word in words), result.err


def test_no_checkpoint_named(run) -> None:
    result = run("test", "demo")
    assert result.status == 2 and "--checkpoint" in result.err


# -- files and folders ------------------------------------------------------------------------------------------------


def test_run_folders_that_cannot_be_used(run, drawn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for folder in ("file", "file/below"):
        error = train(run, drawn["sysu"], run_dir=tmp_path / folder).error
        assert "a file of this name, or of a folder above it, is in the way" in error and "--run-dir" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_run_folder_without_permission(run, drawn, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    error = train(run, drawn["sysu"], run_dir=tmp_path / "locked/x").error
    assert "Permission denied. Choose another with --run-dir" in error


def test_an_output_that_cannot_be_written(run, drawn, tmp_path: Path) -> None:
    best = checkpoint(tmp_path / "best.pth")
    command = ["test", "demo", "--data-dir", drawn["sysu"], "--checkpoint", best, "--output", tmp_path / "none/x.json"]
    assert "cannot write" in run(*command).error


# -- weights ----------------------------------------------------------------------------------------------------------


def no_zip(path: Path) -> None:
    path.write_bytes(b"these are no weights")


def truncated(path: Path) -> None:
    checkpoint(path)
    path.write_bytes(path.read_bytes()[:5000])


def without_block(path: Path) -> None:
    state = build_model(MODEL).state_dict()
    checkpoint(path)
    content = torch.load(path, weights_only=True)
    content["model"] = {k: v for k, v in state.items() if not k.startswith("shallow_head.")}
    torch.save(content, path)


def not_finite(path: Path) -> None:
    checkpoint(path)
    content = torch.load(path, weights_only=True)
    content["model"]["cls_token"][0, 0, 0] = float("nan")
    torch.save(content, path)


def of_the_future(path: Path) -> None:
    checkpoint(path)
    content = torch.load(path, weights_only=True)
    content["config"]["model"]["rotary"] = True
    torch.save(content, path)


BAD_WEIGHTS = [
    (lambda path: None, "does not exist: train first"),
    (lambda path: path.mkdir(), "is a folder: give a checkpoint file, such as"),
    (no_zip, "cannot be read as a weight file"),
    (truncated, "cannot be read as a weight file: it is truncated, damaged"),
    (lambda path: torch.save([1, 2], path), "holds a list, not a dict of weights"),
    (lambda path: torch.save({"a": torch.zeros(2)}, path), "neither a checkpoint of this project nor of the published"),
    (lambda path: torch.save({"format": "sdcl-1"}, path), "only a part of a checkpoint: it lacks model, config, epoch"),
    (lambda path: checkpoint(path, fingerprint=None), "only a part of a checkpoint: it lacks fingerprint"),
    (without_block, r"does not fit the model, which needs \d+ tensors: \d+ missing: shallow_head"),
    (not_finite, "1 not finite: cls_token"),
    (of_the_future, r"settings that this version does not know \(rotary\); use the version"),
    (lambda path: checkpoint(path, config={"eps": 0.5}), "its settings lack data_dir, dataset, model, run_dir"),
    (lambda path: checkpoint(path, trial=3), "was trained on RegDB's trial 3, not on a set without trials"),
]


@pytest.mark.parametrize(("make", "message"), BAD_WEIGHTS)
def test_bad_checkpoints(run, drawn, tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "weights.pth"
    make(path)
    error = run("test", "demo", "--data-dir", drawn["sysu"], "--workers", 0, "--checkpoint", path).error
    assert re.search(message, error) and str(path) in error, error


def test_weights_of_another_architecture(run, drawn, tmp_path: Path) -> None:
    """To start from, and a published checkpoint, which does not tell the network's size."""
    from weight_files import backbone

    from sdcl.models import save_published_format

    torch.save(backbone(dim=24, depth=3), tmp_path / "backbone.pth")
    error = train(run, drawn["sysu"], run_dir=tmp_path / "run", pretrained=tmp_path / "backbone.pth").error
    assert "weights of another architecture: width 24 and 3 blocks, expected width 32 and 2 blocks" in error
    save_published_format(build_model(MODEL), tmp_path / "published.pth", 1, 0.5)
    common = ["test", "demo", "--data-dir", drawn["sysu"], "--workers", 0]
    error = run(*common, "--checkpoint", tmp_path / "published.pth").error
    assert "weights of another architecture: width 32 and 2 blocks, expected width 128" in error
    assert "backbone weights to start training from" in run(*common, "--checkpoint", tmp_path / "backbone.pth").error


class Evil:
    """Pickled, it would make a file when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle", "hidden"])
def test_no_pickle_is_executed(run, drawn, tmp_path: Path, form: str) -> None:
    """As a checkpoint to test, as weights to start from, as a run to go on with."""
    path, trap = tmp_path / "run" / "last.pth", tmp_path / "executed"
    path.parent.mkdir()
    if form == "torch":
        torch.save(Evil(trap), path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(Evil(trap)))
    else:
        torch.save(torch.load(checkpoint(path), weights_only=True) | {"metrics": Evil(trap)}, path)
    errors = [
        run("test", "demo", "--data-dir", drawn["sysu"], "--checkpoint", path).error,
        train(run, drawn["sysu"], run_dir=tmp_path / "other", pretrained=path).error,
        train(run, drawn["sysu"], run_dir=tmp_path / "run", resume="auto").error,
    ]
    assert not trap.exists()
    assert all("last.pth" in error for error in errors)
    if form != "pickle":
        assert all("could run code when opened" in error for error in errors), errors
    pickle.loads(pickle.dumps(Evil(trap)))
    assert trap.exists(), "the trap works"


def test_weights_are_never_loaded_otherwise() -> None:
    """Every torch.load of the project says weights_only=True, and nothing else unpickles."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "sdcl").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        text = path.read_text()
        calls = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text)
        assert len(calls) == text.count("torch.load("), path
        assert all("weights_only=True" in call for call in calls), path
        others = r"pickle\.loads?\(|allow_pickle=True|joblib\.load|hub\.load|urlopen|urlretrieve"
        assert not re.search(others, text), path


@pytest.mark.slow
def test_nothing_is_downloaded(run, drawn, tmp_path: Path, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("something reached for the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert train(run, drawn["sysu"], run_dir=tmp_path / "run").status == 0
    assert run("test", "demo", "--data-dir", drawn["sysu"], "--workers", 0,
               "--checkpoint", tmp_path / "run/best.pth").status == 0  # fmt: skip


# -- in processes of their own ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_command_line(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train_sdcl.py", "sysu", "--device", "cpu", "--data-dir", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert re.match("error: none: cam1, .*exp not found; put SYSU-MM01", done.stderr), done.stderr
