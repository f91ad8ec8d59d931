"""A run folder's report.html: reads the run, embeds its test images once and puts the sections together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sdcl.errors import UserError
from sdcl.files import check_writable, write_atomically
from sdcl.frame.checkpoints import read_checkpoint
from sdcl.frame.embedding import Levels
from sdcl.frame.embedding_cache import cache_file, cached_embeddings
from sdcl.frame.method import load_network
from sdcl.frame.retrieval import TestSet, embed_test_set, load_test_set
from sdcl.report import markup, sections
from sdcl.report.run_files import RunFiles, read_run

__all__ = ["ReportedRun", "write_report"]


@dataclass(frozen=True)
class ReportedRun:
    """A run and what its selected weights make of its test images: what a method's own sections are drawn from.

    Attributes:
        trial: RegDB's 1 to 10, 0 elsewhere.
        model: the network with the selected weights.
        embeddings: modality → level → [N, d], rows as in `test.images`.
    """

    run: RunFiles
    trial: int
    model: nn.Module
    test: TestSet
    embeddings: dict[str, Levels]


def write_report(
    folder: Path,
    data_dir: Path | None = None,
    cache_features: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Path:
    """Writes report.html into a run folder; the test images are embedded once with best.pth.

    Args:
        folder: of a run; it may still be going on.
        data_dir: where the data set is now, if no longer where the run found it.
        cache_features: keep the embeddings beside best.pth and use them again (`sdcl.frame.embedding_cache`).
        say: told what is being done.

    Returns:
        The page's path.

    Raises:
        UserError: no run, no best.pth, or data that are not there.
    """
    run = read_run(folder)
    page = folder / "report.html"
    check_writable(page)
    best = folder / "best.pth"
    if not best.is_file():
        raise UserError(f"{folder} holds no best.pth: it is written at the end of the first epoch")
    checkpoint = read_checkpoint(best)
    config = run.config
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir, image_cache=None)
        run = dataclasses.replace(run, config=config)
    trial = checkpoint["trial"]
    test = load_test_set(config, trial)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_network(run.method, best, config, device)
    say(f"{sum(map(len, test.images.values()))} test images, weights of {best} (epoch {checkpoint['epoch']})")
    embeddings = (
        cached_embeddings(cache_file(best), best, run.method, model, test, config, say=say)
        if cache_features
        else embed_test_set(run.method, model, test, config)
    )
    reported = ReportedRun(run, trial, model, test, embeddings)

    say("drawing")
    parts = [
        sections.curves(run),
        sections.results(run, test, checkpoint["epoch"]),
        *sections.retrieval(reported),
        sections.tsne(reported),
        *(run.method.sections(reported) if run.method.sections else ()),
        sections.settings(run, device),
    ]
    text = markup.page(run, checkpoint["epoch"], parts)
    write_atomically(page, lambda p: p.write_text(text, encoding="utf-8"))
    return page
