"""The help of a program: options in the groups in which the settings' source has them, with values and ranges.

Headings are the comments between the fields (`# Data`), an option's text is the field's docstring.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from sdcl.settings import RunSettings, option, ranges_of

__all__ = ["help_text"]

KINDS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclasses.dataclass(frozen=True)
class _Field:
    heading: str
    name: str
    hint: Any
    range: str
    value: Any
    text: str


def help_text(program: str, description: str, options: Any) -> str:
    """What `--help` prints.

    Args:
        program: as it is called, preset included: `train_sdcl.py sysu`.
        description: the program's docstring.
        options: an instance of the options' dataclass, whose `config` holds the settings; its values are the defaults.
    """
    fields = [field for field in _fields(options, "Program") if field.name != "config"] + _fields(options.config, "Run")
    if options.config.synthetic_seed is None:  # no drawn people
        fields = [field for field in fields if not field.name.startswith("synthetic_")]
    groups: dict[str, list[_Field]] = {}
    for field in fields:
        groups.setdefault(field.heading, []).append(field)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6  # else whoever shows it breaks lines
    lines = [f"usage: python {program} [options]", "", description.strip()]
    for heading, members in groups.items():
        lines += ["", f"{heading}:"]
        for field in members:
            lines.append(f"  {_usage(field)}")
            lines += textwrap.wrap(field.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _usage(field: _Field) -> str:
    name = option(field.name)
    if field.hint is bool:
        return f"{name}, {option('no_' + field.name)} (default: {name if field.value else option('no_' + field.name)})"
    default = "needed" if type(field.value).__module__.startswith("tyro") else f"default: {_shown(field.value)}"
    return f"{name} {_kind(field.hint)}" + (f", {field.range}" if field.range else "") + f" ({default})"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return "{" + "|".join(map(str, parts)) + "}"
    if origin is tuple:
        return " ".join(_kind(part) for part in parts if part is not Ellipsis) + (" …" if Ellipsis in parts else "")
    if parts:  # X | None, X | Literal
        return "|".join("None" if part is NoneType else _kind(part).strip("{}") for part in parts)
    return KINDS.get(hint, "VALUE")


def _fields(instance: Any, heading: str) -> list[_Field]:
    """The fields of a dataclass instance, a nested one's (the network's) in its place under a heading of its own."""
    kind: Any = type(instance)
    hints, found = get_type_hints(kind, include_extras=True), ranges_of(kind)
    places = _places(kind)
    out = []
    for field in dataclasses.fields(kind):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, RunSettings):
            out += _fields(value, "Network")
        else:
            place, text = places.get(field.name, ("", ""))
            limits = str(found[field.name]) if field.name in found else ""
            out.append(_Field(place or heading, field.name, hints[field.name], limits, value, text))
    return out


def _places(kind: type) -> dict[str, tuple[str, str]]:
    """Field → the heading that it stands under and its docstring, in the source of a dataclass and those it inherits
    from; a field that is declared again keeps the heading of the first, and takes the text of the last."""
    places: dict[str, tuple[str, str]] = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        (tree,) = ast.parse(source).body
        assert isinstance(tree, ast.ClassDef)
        headings = {
            number: re.sub(r"\s*\(.*\)$", "", match[1])
            for number, line in enumerate(source.splitlines(), 1)
            if (match := re.fullmatch(r"    # ([A-Z][^.:]*)", line))
        }
        for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name, heading = node.target.id, ""
                for number, title in headings.items():
                    heading = title if number < node.lineno else heading
                known = places.get(name, ("", ""))
                places[name] = known[0] or heading, _docstring(after) or known[1]
    return places


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
