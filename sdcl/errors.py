"""The one exception that the programs show to their user, and how they show it."""

import errno
import sys
from collections.abc import Callable
from typing import NoReturn

# Failures of the machine rather than of the program, wherever they strike: disk full, quota, permissions, read-only.
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


class UserError(Exception):
    """Bad input, an impossible setting, a full disk: something that the user can mend.

    The message says what is wrong, where, and what to do. The programs print it as one line and exit with status 2.
    """


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run a program's `main` and exit with the status that it returns (None = 0).

    A UserError, a full disk or a missing permission ends in one line on stderr and status 2, Ctrl-C in status 130; any
    other exception is a mistake of the program's and keeps its traceback.
    """
    try:
        status = main()
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    else:
        sys.exit(status or 0)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
