"""Programs run in this process, as a command line would: a new one imports PyTorch for seconds."""

import contextlib
import io
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock


class Outcome(NamedTuple):
    status: int
    said: str


def outcome(words: list[str], run: Callable[[], object]) -> Outcome:
    """Exit status of `run()` under the command line `words`, and what it printed; an exception is a status of 1."""
    said, status = io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        try:
            run()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:  # noqa: BLE001 - a program that fails in whatever way is a result
            traceback.print_exc(file=said)
            status = 1
    return Outcome(status, said.getvalue())
