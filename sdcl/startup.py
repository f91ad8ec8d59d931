"""Programs import this before anything else: what ends one while its imports go on is told in one line.

A Python without the project's packages, a package that is broken, and Ctrl-C need no traceback. Once `run_program`
has started, it takes care of them.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import NoReturn

from sdcl.errors import broken_package

__all__: list[str] = []


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        _leave("interrupted", 130)
    if isinstance(error, ImportError) and broken_package(error):
        _leave(f"error: {broken_package(error)}", 2)
    sys.__excepthook__(kind, error, traceback)


def _leave(line: str, status: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
    os._exit(status)  # a hook cannot choose the status otherwise


if sys.version_info < (3, 10):  # noqa: UP036 - this is what tells so
    _leave(f"error: Python 3.10 or newer is needed, this is {sys.version.split()[0]} ({sys.executable})", 2)
sys.excepthook = _hook
