"""Programs import this before anything else: what ends one while its imports go on is told in one line.

A Python without the project's packages, a package that is broken, and Ctrl-C need no traceback. Once `run_program`
has started, it takes care of them.
"""

import os
import sys
from types import TracebackType
from typing import NoReturn

from sdcl.errors import broken_package

__all__: list[str] = []


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        _leave("interrupted", 130)
    if isinstance(error, ImportError) and (line := broken_package(error)):
        _leave(f"error: {line}", 2)
    sys.__excepthook__(kind, error, traceback)


def _leave(line: str, status: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
    os._exit(status)  # a hook cannot choose the status otherwise


sys.excepthook = _hook
