"""The rooms of docs/architecture.md: what each imports, and that shared rooms know no part of SDCL."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ALONE = ("memory", "cnl", "cra", "evaluation", "rerank", "clustering")
BASE = ("distributed", "errors", "files", "seeds", "settings", "startup", "tables", "tensor_files", "version")
SHARED = (*ALONE, *BASE, "data", "frame", "report")
SDCL = ("config", "models", "training")
METHODS = ("pic", "cclnet", "aml")
MAY_IMPORT = {
    **{room: () for room in ALONE},
    **{room: BASE for room in BASE},
    "data": (*ALONE, *BASE),
    "frame": (*ALONE, *BASE, "data"),
    "report": (*ALONE, *BASE, "data", "frame"),
    **{room: (*SHARED, *SDCL) for room in SDCL},
    **{room: SHARED for room in METHODS},
}
"""Room → the rooms that it may import beside itself."""


def files_of(room: str) -> list[Path]:
    file = ROOT / "sdcl" / f"{room}.py"
    return [file] if file.is_file() else sorted((ROOT / "sdcl" / room).rglob("*.py"))


def imported(source: str) -> set[str]:
    """The rooms of `sdcl` that a module imports when it runs, in its functions too; imports for type checkers alone
    are left out. "" is the package itself."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "sdcl":
            names = [f"sdcl.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        found |= {(f"{name}.").split(".")[1] for name in names if name.partition(".")[0] == "sdcl"}
        found |= {name for name in names if name.startswith("train_")}
    return found


def test_every_room_has_its_rule() -> None:
    rooms = {path.stem for path in (ROOT / "sdcl").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_what_it_may(room: str) -> None:
    wrong = {str(path.relative_to(ROOT)): sorted(more) for path in files_of(room)
             if (more := imported(path.read_text()) - {room, *MAY_IMPORT[room]})}  # fmt: skip
    assert not wrong


def test_imports_are_found() -> None:
    source = "import sdcl.data.records\nif TYPE_CHECKING:\n    from sdcl.report import x\ndef f():\n"
    source += "    from sdcl import cra\n"
    assert imported(source) == {"data", "cra"}
    assert imported("from sdcl.frame.run import Run\nimport train_sdcl, sdcl\n") == {"frame", "train_sdcl", ""}


# -- names ------------------------------------------------------------------------------------------------------------

WORDS = re.compile(r"\b(shallow|stage[ _-]?2|cnl|cra)\b|deep(?!er|ly|copy)", re.IGNORECASE)
MEANT_OTHERWISE = {
    # How thorough a check of the data is: it reads every image.
    "sdcl/data": re.compile(r"\bdeep: bool|deep: also|deep: read|if deep|deep=False|\"deep\"|deep, published|"
                            r"`?--check deep"),
}  # fmt: skip


def words_of(source: str) -> list[tuple[int, str]]:
    """Lines of a module that name a part of SDCL: its code, docstrings and comments."""
    lines = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT) and WORDS.search(token.string):
            for number, line in enumerate(token.string.splitlines() or [""], token.start[0]):
                if WORDS.search(line):
                    lines[number] = source.splitlines()[number - 1].strip()
    return sorted(lines.items())


SHARED_FILES = [
    *(path for room in (*BASE, "memory", "evaluation", "rerank", "clustering", "data", "frame", "report")
      for path in files_of(room)),
    *(ROOT / name for name in ("test_sdcl.py", "scripts/report.py", "scripts/compare.py", "scripts/export.py",
                               "scripts/ablation.py")),
]  # fmt: skip


def test_shared_rooms_name_no_part_of_sdcl() -> None:
    wrong = []
    for path in SHARED_FILES:
        name = str(path.relative_to(ROOT))
        meant = next((m for folder, m in MEANT_OTHERWISE.items() if name.startswith(folder)), None)
        wrong += [f"{name}:{n}: {line}" for n, line in words_of(path.read_text()) if not (meant and meant.search(line))]
    assert not wrong, "\n".join(wrong)


def test_names_are_found() -> None:
    source = 'x = 1  # of stage 2\nshallow = {}\n"""Of\nCNL."""\ny = deepcopy(x)\n'
    assert [number for number, _ in words_of(source)] == [1, 2, 4]


def test_the_page_has_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    missing = [room for room in MAY_IMPORT if not re.search(rf"\b{room}(\.py|/)?`", page)]
    assert missing in ([], ["version"])


def test_the_library_alone_starts_nothing() -> None:
    """`import sdcl` is quick: neither PyTorch nor a method comes with it."""
    import subprocess

    code = "import sys, sdcl; print(sorted(m for m in sys.modules if m == 'torch' or m.startswith('sdcl.')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "['sdcl.version']", done.stderr
