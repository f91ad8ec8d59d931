"""The exceptions that the programs show to their user, and how they show them."""

from __future__ import annotations

import codecs
import errno
import os
import shlex
import signal
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

# Failures of the machine rather than of the program, wherever they strike: full disk or quota, permissions, a broken
# disk, a read-only file system, too large a file.
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG}


class UserError(Exception):
    """Bad input, an impossible setting, a full disk: something that the user can mend.

    The message says what is wrong, where, and what to do. The programs print it as one line and exit with status 2.
    """


class Terminated(BaseException):
    """SIGTERM arrived: a batch system's time limit, a shutdown, `kill`. No Exception, so that nothing swallows it."""


def run_program(main: Callable[[], int | None], after_interruption: Callable[[], str] | None = None) -> NoReturn:
    """Run a program's `main` and exit with the status that it returns (None = 0).

    A UserError, a full disk, a missing permission or a package that cannot be imported ends in one line on stderr and
    status 2; Ctrl-C in one and status 130, SIGTERM in one and status 143; any other exception is a mistake of the
    program's and keeps its traceback. A terminal that cannot show a character gets another in its place.

    after_interruption: what the line after Ctrl-C or SIGTERM should say: how to go on.
    """
    sys.excepthook = sys.__excepthook__  # the imports are over (sdcl/startup.py)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="in-other-characters")
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        status = main()
    except UserError as error:
        _exit(f"error: {error}", 2)
    except ImportError as error:
        line = broken_package(error)
        if not line:
            raise
        _exit(f"error: {line}", 2)
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise
        _exit(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", 2)
    except (KeyboardInterrupt, Terminated) as error:
        status = 130 if isinstance(error, KeyboardInterrupt) else 143
        advice = f". {after_interruption()}" if after_interruption else ""
        _exit("interrupted" + advice if os.environ.get("RANK", "0") == "0" else "", status)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
    sys.exit(status or 0)


def _exit(line: str, status: int) -> NoReturn:
    if line and _first_to_say(line):
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)


def _first_to_say(line: str) -> bool:
    """Whether no other process that torchrun started on this machine has said this: an error that meets all of them is
    printed once. They have a folder in common, in which torchrun collects their errors."""
    own_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if own_file:
        try:
            (Path(own_file).parents[1] / f"said-{zlib.crc32(line.encode()):08x}").touch(exist_ok=False)
        except FileExistsError:
            return False
        except (OSError, IndexError):
            return True
    return True


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one must not disturb the tidying up
    raise Terminated


def broken_package(error: ImportError) -> str:
    """What to say of a package that is missing or cannot be imported; empty where a module of this project is meant,
    which is a mistake of the program's."""
    package = (error.name or "").partition(".")[0]
    if not package or package == "sdcl" or package.startswith(("train_", "test_sdcl")):
        return ""
    what = f"has no {package}" if isinstance(error, ModuleNotFoundError) else f"cannot import {package} ({error})"
    venv = os.environ.get("SDCL_VENV", ".venv")
    return (
        f"this Python ({sys.executable}) {what}. `bash scripts/demo.sh` and `bash scripts/test.sh` make the "
        f"environment {venv} with what is needed: . {venv}/bin/activate, or {venv}/bin/python {shlex.join(sys.argv)}"
    )


_OTHER_CHARACTERS = {
    "±": "+-", "–": "-", "→": "->", "…": "...", "×": "x", "°": " degrees",
    **{bar: str(height) for height, bar in enumerate("▁▂▃▄▅▆▇█", 1)},
}  # fmt: skip


def _in_other_characters(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a stream cannot encode: ASCII that reads alike, else the escaped code point."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    parts = (_OTHER_CHARACTERS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(parts), error.end


codecs.register_error("in-other-characters", _in_other_characters)
