"""Counts of a data set against the published ones, and which of its files cannot be read."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sdcl.data.images import find_unreadable
from sdcl.data.records import ImageRecord, shown
from sdcl.errors import UserError

Count = int | str

@dataclass(frozen=True)
class CheckRow:
    """One counted thing: what was found, what is published (None: nothing to compare with), whether it is right."""

    what: str
    found: Count
    published: Count | None
    ok: bool


@dataclass(frozen=True)
class CheckReport:
    """Result of a verification.

    unreadable: path -> reason; empty when every file was read, or when none was (`opened` = 0).
    cost: what differing counts mean for the results. remark: a sentence more about what differs.
    """

    name: str
    rows: list[CheckRow]
    cost: str
    opened: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def differing(self) -> list[CheckRow]:
        """Rows whose count is not the published one, or not that of the raw folders."""
        return [row for row in self.rows if not row.ok]

    @property
    def ok(self) -> bool:
        """Every count right and every opened file readable."""
        return not self.differing and not self.unreadable

    def table(self) -> str:
        """Several lines: what, found, published, verdict; then the unreadable files, if any."""
        lines = [("", "found", "published", "")]
        for row in self.rows:
            published = "" if row.published is None else _text(row.published)
            lines.append((row.what, _text(row.found), published, "ok" if row.ok else "DIFFERS"))
        if self.opened:
            verdict = "FAILS" if self.unreadable else "ok"
            lines.append(("unreadable files", f"{len(self.unreadable):,} of {self.opened:,}", "", verdict))
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        table = [
            f"{what:<{widths[0]}}  {found:>{widths[1]}}  {published:>{widths[2]}}  {verdict}".rstrip()
            for what, found, published, verdict in lines
        ]
        return "\n".join([*table, *(f"unreadable: {reason}" for reason in self.unreadable.values())])

    @property
    def verdict(self) -> str:
        """One line: all is well, or what is wrong and what it costs."""
        parts = []
        if self.unreadable:
            first = shown(next(iter(self.unreadable)))
            parts.append(f"{len(self.unreadable):,} of {self.opened:,} files cannot be read (the first: {first})")
        if self.differing:
            listed = "; ".join(_difference(row) for row in self.differing)
            parts.append(f"WARNING: counts differ from the published ones: {listed}. Note that {self.cost}")
        if self.remark:
            parts.append(self.remark)
        if parts:
            return f"{self.name}: {'. '.join(parts)}."
        compared = any(row.published is not None for row in self.rows)
        counts = "all counts are as published" if compared else "counts agree"
        return f"{self.name}: {counts}{f', all {self.opened:,} files can be read' if self.opened else ''}."


def count_report(
    name: str,
    counts: Mapping[str, Count],
    published: Mapping[str, Count] | None,
    wanted: Mapping[str, Count],
    cost: str,
    paths: Sequence[str],
    progress: bool,
    remark: str = "",
) -> CheckReport:
    """The report of these counts.

    published: what they are compared with. wanted: what a count must equal to be right: the published count, else what
    the raw folders hold. paths: images to read, if any.
    """
    rows = [
        CheckRow(what, found, (published or {}).get(what), found == wanted.get(what, found))
        for what, found in counts.items()
    ]
    opened, unreadable = find_unreadable(paths, progress) if paths else (0, {})
    return CheckReport(name, rows, cost, opened, unreadable, remark)


def data_fingerprint(records: Sequence[ImageRecord]) -> str:
    """16 hexadecimal digits that identify these images by name (relative to their common folder) and file size.

    Equal wherever the data set lies; another number of images, other names or sizes give another one.
    """
    if not records:
        raise ValueError("no images to take a fingerprint of")
    root = os.path.commonpath([os.path.dirname(record.path) for record in records])
    digest = hashlib.sha256()
    for path in sorted(record.path for record in records):
        try:
            size = os.path.getsize(path)
        except OSError as error:
            raise UserError(
                f"{shown(path)}: {error.strerror}; the file was there a moment ago, or is a broken link"
            ) from None
        digest.update(f"{os.path.relpath(path, root)}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _difference(row: CheckRow) -> str:
    instead = "" if row.published is None else f" instead of {_text(row.published)}"
    return f"{row.what} {_text(row.found)}{instead}"


def _text(count: Count) -> str:
    return f"{count:,}" if isinstance(count, int) else count
