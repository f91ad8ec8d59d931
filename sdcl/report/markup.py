"""The HTML of the page and of the pieces that its sections are made of."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

from sdcl.data.images import open_image
from sdcl.data.records import ImageRecord
from sdcl.frame.retrieval import modes
from sdcl.report import figures
from sdcl.report.run_files import RunFiles

__all__ = ["Section", "escape", "figure", "page", "photo", "picture", "row"]

Section = tuple[str, str, str]
"""Anchor, heading, HTML."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<header><h1>{title}</h1><p>{about}</p><div class="numbers">{numbers}</div></header>
<nav>{links}</nav>
<main>{body}</main>
</body>
</html>
"""


def page(run: RunFiles, epoch: int, sections: Sequence[Section]) -> str:
    """The whole page; epoch: that of the selected weights."""
    line = next((entry for entry in run.log if entry["epoch"] == epoch), run.log[-1])
    numbers = "".join(
        f'<div class="number"><b>{100 * table[metric]:.1f} %</b><span>{name}, {_words(mode)}</span></div>'
        for mode, table in modes(run.results or line).items()
        for metric, name in (("rank1", "Rank-1"), ("mAP", "mAP"))
    )
    drawn = " (drawn people)" if run.config.synthetic_seed is not None else ""
    so_far = "" if run.results is not None else " so far"
    return _PAGE.format(
        title=f"{escape(run.method.title)} · {escape(run.folder.resolve().name)}",
        css=(files("sdcl") / "assets" / "report.css").read_text(encoding="utf-8"),
        about=f"{escape(run.config.data_dir)}{drawn} · {len(run.log)} of {run.config.epochs} epochs, "
        f"the best is epoch {epoch}{so_far}",
        numbers=numbers,
        links="".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in sections),
        body="".join(f'<section id="{anchor}"><h2>{title}</h2>{text}</section>' for anchor, title, text in sections),
    )


def figure(uri: str, alt: str, caption: str) -> str:
    """A drawing over the whole width, with a caption."""
    return (
        f'<figure class="wide"><img src="{uri}" alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def picture(uri: str, caption: str, kind: str = "") -> str:
    """A small picture; kind: "right", "wrong" or "query" frames it."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="photo {kind}"><img src="{uri}" alt="{escape(caption)}">{below}</figure>'


def photo(record: ImageRecord, caption: str, kind: str) -> str:
    """An image of the data set as a small picture."""
    return picture(figures.photo_uri(open_image(record.path)), caption, kind)


def row(first: str, others: str) -> str:
    """A picture, an arrow and what follows from it."""
    return f'<div class="row">{first}<span class="arrow">→</span>{others}</div>'


def escape(value: object) -> str:
    return html.escape(str(value))


def _words(name: str) -> str:
    return escape(name.replace("_", " "))
