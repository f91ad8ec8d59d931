"""A run folder's report.html: reads the run, embeds its test images once and puts the sections together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from sdcl.report.figures import save_figure
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
    figures: Path | None = None,
    form: str = "pdf",
) -> Path:
    """Writes report.html into a run folder; the test images are embedded once with best.pth.

    Args:
        folder: of a run; it may still be going on.
        data_dir: where the data set is now, if no longer where the run found it.
        cache_features: keep the embeddings beside best.pth and use them again (`sdcl.frame.embedding_cache`).
        say: told what is being done.
        figures: a folder for the page's figures as files, one each (made if it does not exist).
        form: theirs, "pdf" or "svg".

    Returns:
        The page's path.

    Raises:
        UserError: no run, no best.pth, or data that are not there.
    """
    run = read_run(folder)
    page = folder / "report.html"
    check_writable(page)
    if figures is not None:
        try:
            figures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {figures} for the figures: {error.strerror}") from None
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
    if figures is not None:
        for file in write_figures(reported, figures, form):
            say(str(file))
    return page


def write_figures(reported: ReportedRun, folder: Path, form: str) -> list[Path]:
    """Writes the page's figures (not its photographs) as `<name>.<form>`, RegDB's with the trial in front."""
    prefix = f"trial-{reported.trial}-" if reported.trial else ""
    files = []
    for name, drawn in sections.drawings(reported).items():
        file = folder / f"{prefix}{name}.{form}"
        check_writable(file)
        write_atomically(file, partial(save_figure, drawn, form))
        files.append(file)
    return files
