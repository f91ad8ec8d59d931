"""The command line of training and test programs: every field of a method's settings is an option, checked by its
type."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from sdcl.errors import UserError
from sdcl.frame.help import help_text
from sdcl.settings import Count, RunSettings, Share, check_ranges

__all__ = ["TestOptions", "TrainOptions", "answer_early", "given", "how_to_go_on", "parse_test", "parse_training"]

S = TypeVar("S", bound=RunSettings)


@dataclass(frozen=True)
class TrainOptions(Generic[S]):
    """What the training program takes beside the settings."""

    config: tyro.conf.OmitArgPrefixes[S]
    dry_run: bool = False
    """Do not train: check data and weights, run a little of each phase at full size, and print step times, memory and
    the hours of the whole schedule. The run folder is left alone."""


@dataclass(frozen=True)
class TestOptions(Generic[S]):
    """What the test program takes beside the settings."""

    config: tyro.conf.OmitArgPrefixes[S]
    checkpoint: Path
    """Weights to test: of this project, or of a format that the method reads (SDCL: that of the published
    implementation). RegDB: a run folder with trial-<n>/best.pth in it tests all of them."""
    method: str | None = None
    """Of weights in another format: the method that they are of (sdcl, …). A checkpoint of this project says it."""
    output: Path | None = None
    """Where the table goes as JSON. Default: test-<checkpoint>.json beside the checkpoint (several shots and re-ranking
    have names of their own, test-best-10-shot-rerank.json; the table of other images or options is never replaced)."""
    shots: Count = 1
    """SYSU-MM01: gallery images of an identity and camera. 1 is what tables report, 10 the multi-shot variant."""
    rerank: bool = False
    """Test with k-reciprocal re-ranking too. It compares queries with each other, which the published tables do not:
    state it beside every number that uses it."""
    rerank_k1: Count = 20
    """Re-ranking: neighbours that are looked at."""
    rerank_k2: Count = 6
    """Re-ranking: rows of the query expansion; 1 turns it off."""
    rerank_weight: Share = 0.3
    """Re-ranking: share of the original distance, 0 to 1."""
    cache_features: bool = False
    """Keep the test embeddings beside the checkpoint, as embeddings-<checkpoint>.npz, and use them again while
    weights, test images and settings are the same."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def variant(self) -> str:
        """What the names of files of a multi-shot test have in addition; empty for the single-shot one."""
        return "" if self.shots == 1 else f"-{self.shots}-shot"


def parse_training(arguments: Sequence[str], description: str, presets: Mapping[str, S]) -> TrainOptions[S]:
    """Options of `train_<method>.py <preset> [options]`; prints help or an error and exits where that is due.

    Args:
        description: the program's docstring; its name is the first word there that ends in .py.
        presets: settings of one class, by name.
    """
    program = _program(description, "train_sdcl.py")
    preset, rest = _split(arguments, program, description, presets)
    return _parse(TrainOptions, TrainOptions(presets[preset]), f"{program} {preset}", description, rest)


def answer_early(description: str | None, presets: Mapping[str, S]) -> None:
    """Answers a call for help, and a command line with a slip, before the program loads torch, which takes seconds.

    What the settings themselves refuse is left to the program's own parsing. Of several processes, which have one
    command line, the first one speaks.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(UserError))
        if os.environ.get("RANK", "0") != "0":
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        parse_training(sys.argv[1:], description or "", presets)


def parse_test(arguments: Sequence[str], description: str, presets: Mapping[str, S]) -> TestOptions[S]:
    """Options of `test_sdcl.py <preset> --checkpoint F [options]`; presets: of the checkpoint's method."""
    preset, rest = _split(arguments, "test_sdcl.py", description, presets)
    default = TestOptions(presets[preset], checkpoint=tyro.MISSING)
    return _parse(TestOptions, default, f"test_sdcl.py {preset}", description, rest)


def _parse(kind: Any, default: Any, program: str, description: str, rest: list[str]) -> Any:
    """kind: the options' generic class, which becomes that of the default's settings."""
    if {"-h", "--help"} & set(rest):
        print(help_text(program, description, default))
        raise SystemExit(0)
    options = kind[type(default.config)]
    how = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(options, prog=program, description=description, default=default, args=rest, config=how)


def given(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option on a command line that is not parsed yet: `--option value` or `--option=value`."""
    for at, argument in enumerate(arguments):
        if argument == option and at + 1 < len(arguments):
            return arguments[at + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _program(description: str, otherwise: str) -> str:
    return next((word for word in description.split() if word.endswith(".py")), otherwise)


def _split(
    arguments: Sequence[str], program: str, description: str, presets: Mapping[str, S]
) -> tuple[str, list[str]]:
    """The preset and the options behind it; `--resume` alone means `--resume always`."""
    if not arguments or arguments[0] not in presets:
        wanted = bool(arguments) and arguments[0] in ("-h", "--help")
        usage = f"usage: python {program} {{{'|'.join(presets)}}} [options]\n\n{description}\n\n"
        usage += f"All options of a preset, with its values: python {program} {next(iter(presets))} --help"
        print(usage, file=sys.stdout if wanted else sys.stderr)
        if arguments and not wanted:
            print(f"\nerror: '{arguments[0]}' is no preset: choose {', '.join(presets)}", file=sys.stderr)
        raise SystemExit(0 if wanted else 2)
    rest = list(arguments[1:])
    if "--resume" in rest:
        after = rest.index("--resume") + 1
        if after == len(rest) or rest[after].startswith("--"):
            rest.insert(after, "always")
    return arguments[0], rest


def _machines() -> list[str]:
    """Options of torchrun for several machines: this one is the first, the others have their own --node-rank."""
    machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if machines == 1:
        return []
    place = ["--node-rank", os.environ["GROUP_RANK"], "--master-addr", os.environ["MASTER_ADDR"]]
    return ["--nnodes", str(machines), *place]


def how_to_go_on() -> str:
    """What a training that was interrupted says: that nothing is lost, and the command that goes on, to be copied."""
    if "--dry-run" in sys.orig_argv:
        return "A dry run leaves nothing behind"
    command = [a for a in sys.orig_argv if not a.startswith("--resume=")]
    while "--resume" in command:
        at = command.index("--resume")
        valued = at + 1 < len(command) and not command[at + 1].startswith("--")
        del command[at : at + 1 + valued]
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun started this process: it is torchrun that must start again
        program = next(i for i, a in enumerate(command) if a.endswith(".py"))
        command = ["torchrun", *_machines(), "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], *command[program:]]
    return f"Every finished epoch is safe; go on with: {shlex.join([*command, '--resume', 'auto'])}"
