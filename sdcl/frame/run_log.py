"""What a run has written down so far: log.jsonl, results.json, provenance.json, checked as they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdcl.errors import UserError
from sdcl.files import read_json
from sdcl.frame.retrieval import METRICS, modes, parts_of

__all__ = ["read_log", "read_provenance", "read_results"]


def read_log(file: Path) -> list[dict[str, Any]]:
    """The entries of a log.jsonl; a last line that a kill cut short is left out.

    Raises:
        UserError: the file cannot be read, or a line is no entry of an epoch.
    """
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            if number == len(texts):
                break
            line = None
        if not _is_entry(line):
            raise UserError(f"{file}, line {number}: this is no entry of an epoch; delete the line")
        lines.append(line)
    return lines


def _is_entry(line: Any) -> bool:
    """Whether epoch, loss and seconds are numbers, and so is what the tests say."""
    if not isinstance(line, dict) or type(line.get("epoch")) is not int:
        return False
    seconds = line.get("seconds", {})
    if not isinstance(seconds, dict):
        return False
    numbers = [line.get("loss", 0), *seconds.values()]
    for row in modes(line).values():
        numbers += [row.get("mAP"), *row.values()]
    return all(map(_is_number, numbers))


def read_results(file: Path) -> dict[str, Any]:
    """A run's results.json: tables of modes, those of the selected weights at the top level.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    results = read_json(file)
    rows = [row for part in (results, *map(results.get, parts_of(results))) for row in modes(part or {}).values()]
    wanted = [name for metric in METRICS for name in (metric, f"{metric}_std")]
    if not modes(results) or not all(_is_number(row.get(name)) for row in rows for name in wanted):
        raise UserError(
            f"{file} is damaged: it holds no tables of results. Delete it: the command that made it, with --resume "
            "auto, makes it again"
        )
    return results


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run folder's provenance.json (`sdcl.frame.provenance`); none where an older version trained.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    file = folder / "provenance.json"
    entries = read_json(file).get("runs") if file.exists() else []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{file} is damaged: it does not say what made the run. Restore or delete it")
    return entries


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
