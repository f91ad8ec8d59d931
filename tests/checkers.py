"""The programs that come with golden vectors and check them, run in this process: a new one imports for seconds."""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock


class Checked(NamedTuple):
    status: object
    said: str


def run_checker(program: Path, *arguments: object, **changes: object) -> Checked:
    """`python program arguments…`: exit status, and what it printed. changes: of constants of the program.

    What it imports from its own folders is forgotten afterwards: other programs' modules have the same names.
    """
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec and spec.loader
    module, said = importlib.util.module_from_spec(spec), io.StringIO()
    words = [str(program), *map(str, arguments)]
    with mock.patch.object(sys, "argv", words), mock.patch.object(sys, "path", [*sys.path]):
        spec.loader.exec_module(module)
        vars(module).update(changes)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                module.main()
                status: object = 0
            except SystemExit as ended:
                status = ended.code or 0
    folders = [str(program.parent), str(program.parent.parent)]
    for name, imported in list(sys.modules.items()):
        if str(Path(getattr(imported, "__file__", None) or "/").parent) in folders:
            del sys.modules[name]
    return Checked(status, said.getvalue())
