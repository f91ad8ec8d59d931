"""Every kind of bad input to preparation says what is wrong and where, in one line; and the two programs."""

import errno
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_sets import make_regdb, make_sysu, remove, save_image, write

from sdcl.data import prepare as prepare_module
from sdcl.data.readers import regdb, sysu
from sdcl.errors import UserError, run_program

ROOT = Path(__file__).resolve().parents[1]


def file_instead_of(relative: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        if (root / relative).exists():
            shutil.rmtree(root / relative)
        (root / relative).write_text("a file")
    return act


def absent_identity(root: Path) -> None:
    for camera in range(1, 7):
        shutil.rmtree(root / f"cam{camera}" / "0012")


SYSU_BAD = [
    (remove("cam4"), "cam4 not found; put SYSU-MM01 .*demo.sh"),
    (remove("exp"), "exp not found"),
    (remove("exp/val_id.txt"), "val_id.txt: no such file"),
    (write("exp/train_id.txt", ""), "train_id.txt: must be one line of ids"),
    (write("exp/train_id.txt", "3,x5"), "train_id.txt: .*holds 'x5'"),
    (write("exp/test_id.txt", "../7,30"), "test_id.txt: .*'../7'"),
    (write("exp/train_id.txt", "3,12345"), "'12345'"),
    (write("exp/train_id.txt", "3,5,7"), "id 7 is both a training and a test id"),
    (write("exp/test_id.txt", "7,30,44"), "name id 0044, which has no image in cam1 … cam6"),
    (absent_identity, "name id 0012, which has no image"),
    (file_instead_of("cam2"), "cam2: this is a file"),
    (file_instead_of("cam5/0003"), "0003: this is a file"),
    (file_instead_of("rgb_modify"), "rgb_modify.*file is where a folder should be"),
    (file_instead_of("exp"), "train_id.txt: cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), SYSU_BAD)
def test_bad_sysu(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    root = make_sysu(tmp_path)
    damage(root)
    with pytest.raises(UserError, match=message) as caught:
        sysu.prepare(root, progress=False)
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)
    assert not list(root.glob("*_modify/*/*"))  # refused before anything is written


REGDB_BAD = [
    (remove("idx"), "test_visible_1.txt: no such file; put RegDB .*demo.sh"),
    (remove("idx/test_thermal_7.txt"), "test_thermal_7.txt: no such file"),
    (write("idx/train_thermal_2.txt", "\n"), "train_thermal_2.txt: the list is empty"),
    (write("idx/train_thermal_2.txt", "Thermal/0/p0_t_0.bmp\n"), "train_thermal_2.txt, line 1: must read"),
    (write("idx/train_thermal_2.txt", "Thermal/0/p0_t_0.bmp -1\n"), "line 1: must read"),
    (write("idx/train_visible_1.txt", "Visible/0/p0_v_0.bmp 0\n../../etc/passwd 1\n"), "line 2: .*leads out of"),
    (write("idx/train_visible_1.txt", "/etc/passwd 1\n"), "line 1: .*leads out of"),
    (write("idx/train_visible_1.txt", "Visible/0/none.bmp 0\n"), "1 of 1 listed images do not exist.*none.bmp"),
    (write("idx/train_visible_1.txt", "Visible/0 0\n"), "do not exist"),
    (remove("Visible/3/p3_v_2.bmp"), "p3_v_2.bmp; the copy of RegDB is incomplete"),
]


@pytest.mark.parametrize(("damage", "message"), REGDB_BAD)
def test_bad_regdb(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    root = make_regdb(tmp_path)
    damage(root)
    with pytest.raises(UserError, match=message) as caught:
        regdb.prepare(root, progress=False)
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)
    assert not list(root.glob("*_modify/*/*"))


def test_regdb_files_that_would_share_a_name(tmp_path: Path) -> None:
    root = make_regdb(tmp_path)
    save_image(root / "Visible/copy/p0_v_0.bmp", 0)
    with open(root / "idx/train_visible_1.txt", "a") as file:
        file.write("Visible/copy/p0_v_0.bmp 0\n")
    with pytest.raises(UserError, match="would both be prepared as 0_c1_p0_v_0.bmp"):
        regdb.prepare(root, progress=False)


def test_unprepared_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rgb_modify.*prepare_sysu.py --data-dir"):
        sysu.train_records(tmp_path, "visible")
    with pytest.raises(UserError, match="ir_modify/3.*prepare_regdb.py --data-dir"):
        regdb.train_records(tmp_path, "infrared", 3)
    (tmp_path / "rgb_modify/bounding_box_train").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image"):
        sysu.train_records(tmp_path, "visible")
    (tmp_path / "ir_modify").mkdir()
    (tmp_path / "ir_modify/bounding_box_train").touch()
    with pytest.raises(UserError, match="this is a file"):
        sysu.train_records(tmp_path, "infrared")


@pytest.mark.parametrize(("code", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission"),
                                               (errno.EROFS, "read-only"), (errno.EIO, "Input/output")])
def test_failures_of_writing(tmp_path: Path, monkeypatch, code: int, message: str) -> None:
    def fail(source, destination):
        raise OSError(code, os.strerror(code), destination)

    monkeypatch.setattr(prepare_module.os, "link", fail)
    monkeypatch.setattr(prepare_module.shutil, "copyfile", fail)
    with pytest.raises(UserError, match=message):
        sysu.prepare(make_sysu(tmp_path), progress=False)


# -- the programs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a program of the repository with arguments; gives its exit status, stdout and stderr."""

    def run_here(program: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / program), run_name="__main__")
        written = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, written.out, written.err

    return run_here


def test_program_prepares_warns_and_names_unreadable_files(tmp_path: Path, run) -> None:
    root = make_sysu(tmp_path)
    status, out, err = run("prepare_sysu.py", "--data-dir", root)
    assert status == 0 and "all-search gallery of a trial" in out
    assert "WARNING: counts differ from the published ones" in out.splitlines()[-1]
    assert "preparing" in err and "reading every image" in err  # the progress bars

    path = root / "cam1/0003/0001.jpg"
    path.write_bytes(path.read_bytes()[:150])  # the prepared link shrinks with it
    status, out, _ = run("prepare_sysu.py", "--data-dir", root)
    assert status == 1 and f"unreadable: {path}" in out
    assert run("prepare_sysu.py", "--data-dir", root, "--check", "counts")[0] == 0
    (root / "ir_modify/query/stranger.jpg").touch()
    assert "note: " in run("prepare_sysu.py", "--data-dir", root, "--check", "none")[2]


def test_program_without_data_says_what_to_put_where(tmp_path: Path, run, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for program, name in (("prepare_sysu.py", "data/sysu"), ("prepare_regdb.py", "data/regdb")):
        status, out, err = run(program)
        assert status == 2 and out == ""
        assert len(err.splitlines()) == 1 and err.startswith("error: ")
        assert name in err and "scripts/demo.sh" in err


@pytest.mark.slow
def test_regdb_program_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "prepare_regdb.py", "--data-dir", make_regdb(tmp_path), "--check", "none"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == ""
    assert len(list(tmp_path.glob("*_modify/*/bounding_box_train"))) == 20


@pytest.mark.parametrize(("failure", "status", "line"), [
    (UserError("no such thing"), 2, "error: no such thing"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied"),
    (KeyboardInterrupt(), 130, "interrupted"),
])
def test_run_program_shows_one_line(capsys, failure: BaseException, status: int, line: str) -> None:
    def main() -> int:
        raise failure

    with pytest.raises(SystemExit) as stopped:
        run_program(main)
    assert stopped.value.code == status and capsys.readouterr().err == line + "\n"


def test_run_program_hands_on_the_status_and_keeps_tracebacks_of_mistakes() -> None:
    for value, status in ((None, 0), (0, 0), (1, 1)):
        with pytest.raises(SystemExit) as stopped:
            run_program(lambda value=value: value)
        assert stopped.value.code == status
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        run_program(lambda: Path("/no/such/file").touch())
