"""Tables as text, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["align_columns", "latex_table", "markdown_table"]

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "±": r"$\pm$", "→": r"$\to$"}
"""Characters that LaTeX does not print as they are."""


def align_columns(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of equally many cells as lines, columns two spaces apart: the first `left` flush left, the others right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if c < left else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown_table(rows: Sequence[Sequence[str]], left: int) -> str:
    """The same, the first row as heading, in Markdown."""
    rule = ["---"] * left + ["---:"] * (len(rows[0]) - left)
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (rows[0], rule, *rows[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex_table(rows: Sequence[Sequence[str]], left: int) -> str:
    """The same as a tabular of LaTeX, with the rules of the package booktabs."""
    head, *body = [r" & ".join("".join(SPECIAL.get(c, c) for c in cell) for cell in row) + r" \\" for row in rows]
    columns = "l" * left + "r" * (len(rows[0]) - left)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    )
