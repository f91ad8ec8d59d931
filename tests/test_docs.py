"""What the documentation shows runs: every ```python block of README and docs; and its links lead somewhere."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[str, int, str]]:
    """(page and heading, line, code) of each Python block."""
    found: list[tuple[str, int, str]] = []
    heading, start, code = "", 0, None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if code is None and line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("```python"):
            start, code = number, []
        elif line.startswith("```") and code is not None:
            found.append((f"{page.name}: {heading}", start, "\n".join(code)))
            code = None
        elif code is not None:
            code.append(line)
    return found


ALL = [block for page in PAGES if page.name != "your-method.md" for block in blocks(page)]
"""That page's blocks are a program and a patch, which test_your_method.py runs."""


@pytest.mark.parametrize("name, line, code", ALL, ids=[name for name, _, _ in ALL])
def test_block_runs(name, line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "\n" * line + code  # so that a traceback names the page's line
    exec(compile(source, name, "exec"), {"__name__": "__main__"})


def test_the_promised_blocks_are_there():
    shown = "\n".join(code for name, _, code in ALL if name.startswith("use-in-your-paper"))
    for module in ("memory", "cnl", "cra", "clustering", "evaluation", "rerank", "training.losses"):
        assert f"from sdcl.{module} import" in shown
    assert "sdcl.embed(" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose):
        assert os.path.exists(page.parent / target), f"{page.name} links to {target}"
