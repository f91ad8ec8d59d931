"""Which of the ways to the same result suits this installation and this number of rows."""

import importlib.util

# Loading the compiled code takes about 0.4 s; from here on it saves more than that.
COMPILED_FROM = 8192


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def worth_compiling(n: int) -> bool:
    """Whether numba is installed and repays its warm-up on n rows."""
    return n >= COMPILED_FROM and has("numba")
