"""Whether this Python has what the project needs: `python scripts/check_env.py` prints what is missing and exits with
1.

Standard library and pip alone: it runs before anything is installed.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

try:
    from pip._vendor.packaging.requirements import Requirement
except ImportError:
    print("pip is missing")
    sys.exit(1)

ALIKE = {"faiss-gpu": "faiss-cpu", "faiss-cpu": "faiss-gpu"}


def missing(text: str) -> list[str]:
    """Requirements of pyproject.toml's text that are not installed, each as a line."""
    lines = []
    for block in re.findall(r"^(?:dependencies|test) = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE):
        for quoted in re.findall(r'"([^"]+)"', block):
            requirement = Requirement(quoted)
            if requirement.marker and not requirement.marker.evaluate():
                continue
            found = version(requirement.name) or version(ALIKE.get(requirement.name, ""))
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                lines.append(f"{requirement} (found: {found})")
    return lines


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None


if __name__ == "__main__":
    problems = missing((Path(__file__).parent.parent / "pyproject.toml").read_text())
    print("\n".join(problems))
    sys.exit(bool(problems))
