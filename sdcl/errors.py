"""The exceptions that the programs show to their user, and how they show them."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
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

    A UserError, a full disk or a missing permission ends in one line on stderr and status 2; Ctrl-C in one and status
    130, SIGTERM in one and status 143; any other exception is a mistake of the program's and keeps its traceback.

    after_interruption: what the line after Ctrl-C or SIGTERM should say: how to go on.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        status = main()
    except UserError as error:
        _exit(f"error: {error}", 2)
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
    if line:
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one must not disturb the tidying up
    raise Terminated
