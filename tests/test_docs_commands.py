"""Every command in README and docs runs, and every option there exists (`doc_commands` says how)."""

import dataclasses
import json
import os

import cclnet_runs
import pytest
from doc_commands import ROOT, Session, commands, in_this_process, lay_out, options_shown, run_pages, tiny_presets
from test_docs import PAGES

from sdcl.config import PRESETS
from sdcl.data.sets import SETS

pytestmark = pytest.mark.slow

NOT_RUN = {
    "bash scripts/test.sh": "it runs these tests",
    "bash .ci/run": "it runs these tests",
    "python scripts/verify.py": "test_verification.py runs each of its cases",
    "python scripts/table.py": "hours; test_many_runs.py runs it at tiny size",
    "python scripts/table.py --table-only": "as before",
    "python scripts/table.py --methods cclnet": "as before",
    "python scripts/table.py --methods aml": "as before",
    "python scripts/ablation.py demo --seeds 1 --data-seeds 0 1 2": "test_ablation.py runs it at tiny size",
    "python scripts/report.py runs/sysu": "demo.sh reports on runs/demo",
    "python scripts/report.py runs/sysu --figures figures": "test_report.py draws them",
    "python scripts/report.py runs/mine-demo": "test_your_method.py writes it",
    "python scripts/report.py runs/pic-sysu": "test_pic_run.py writes one",
    "python scripts/report.py runs/cclnet-sysu": "test_cclnet_programs.py writes one",
    "python scripts/seeds.py sysu --seeds 1 2 3": "test_many_runs.py runs it",
    "python scripts/bench_step.py": "test_bench_step.py runs it",
    "python scripts/torture.py": "test_resume.py kills and compares in the same way",
    "python scripts/search.py --checkpoint runs/demo/best.pth --query IMAGE --gallery DIR": "test_search.py runs it",
    "pip install .": "test_export.py builds the wheel from which it installs",
    "python train_aml.py sysu": "its source and weights are not drawn; test_aml_run.py trains all four phases",
    "python train_aml.py sysu02": "as before",
    "python train_aml.py regdb": "as before",
    "tensorboard --logdir runs": "a server of another project; test_progress.py reads the curves",
    "torchrun --nnodes 2 --node-rank 0 --master-addr FIRST --nproc-per-node 2 train_sdcl.py sysu": (
        "test_distributed.py trains on two machines, and compares"
    ),
    "torchrun --nproc-per-node 2": "a part of a command",
    "torchrun --nproc-per-node 2 train_sdcl.py sysu": "test_distributed.py trains on two processes, and compares",
}
"""Commands that are shown and not run here, and why."""

NOT_OURS = {
    **dict.fromkeys(("--nproc-per-node", "--nnodes", "--node-rank", "--master-addr"), "torchrun"),
    "--shm-size": "docker run",
    "--logdir": "tensorboard",
    "--fast": "scripts/test.sh",
}
"""Options of other programs that the pages name."""

ALL = [command for page in PAGES for command in commands(page)]
RUN = [command for command in ALL if command.text not in NOT_RUN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that the commands run in, as working directory, with tiny presets, two of RegDB's trials and a wide
    terminal."""
    folder = tmp_path_factory.mktemp("checkout")
    lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")
        for name, preset in tiny_presets().items():
            patch.setitem(PRESETS, name, preset)
        for name, preset in cclnet_runs.tiny_presets().items():
            patch.setitem(cclnet_runs.PRESETS, name, preset)
        patch.setitem(SETS, "regdb", dataclasses.replace(SETS["regdb"], trials=range(1, 4, 2)))
        yield folder


@pytest.fixture(scope="module")
def outcomes(folder):
    return dict(run_pages(PAGES, set(NOT_RUN), folder))


@pytest.mark.parametrize("command", RUN, ids=[f"{c.page}:{c.line}" for c in RUN])
def test_command_runs(outcomes, command):
    outcome = outcomes[command]
    assert outcome.status == 0, f"{command.page}, line {command.line}: {command.text}\n{outcome.said[-3000:]}"


def test_what_is_left_out_is_there():
    shown = {command.text for command in ALL}
    assert not NOT_RUN.keys() - shown, "listed as not run, but no page shows it: remove it from NOT_RUN"
    assert len(RUN) > 25


def test_the_run_leaves_the_files_that_the_pages_name(outcomes, folder):
    for run in ("runs/sysu", "runs/demo", *(f"runs/regdb/trial-{t}" for t in (1, 3))):
        for name in ("config.json", "log.jsonl", "last.pth", "best.pth", "stage1.pth", "results.json"):
            assert (folder / run / name).is_file(), f"{run}/{name}"
    assert (folder / "runs/demo/report.html").is_file()
    tested = json.loads((folder / "runs/sysu/test-best-10-shot.json").read_text())
    assert "all_search_10_shot" in tested
    assert json.loads((folder / "runs/regdb/results.json").read_text())["trials"] == 2
    log = [json.loads(line) for line in (folder / "runs/sysu/log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == [1, 2]


def test_a_command_that_fails_is_noticed(folder):
    assert in_this_process(["train_sdcl.py", "sysu", "--epochs", "0"]).status == 2
    assert in_this_process(["train_sdcl.py", "sysu", "--no-such-option"]).status == 2
    assert in_this_process(["scripts/no_such_program.py"]).status == 1
    assert "list it in NOT_RUN" in Session(folder).run("torchrun train_sdcl.py sysu").said
    assert Session(folder).run("bash no_such_script.sh").status == 127


def test_commands_are_found_in_every_form(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Do `python a.py\n--x 1` or\n\n    OMP_NUM_THREADS=2 python b.py\n\n```shell\nbash c.sh   # why\nls\n```\n\n"
        "```python\npython = 1\n```\n```\nbash d.sh\nits output\n```\n| `pip install .` | `python.org`, `--option` |\n"
    )
    found = [(command.line, command.text) for command in commands(page)]
    texts = ["python a.py --x 1", "OMP_NUM_THREADS=2 python b.py", "bash c.sh", "ls", "bash d.sh", "pip install ."]
    assert found == list(zip((1, 4, 7, 8, 15, 18), texts, strict=True))
    assert options_shown(page) == {"--x", "--option"}


@pytest.fixture(scope="module")
def helps(folder):
    """The help of every program, with those of its subcommands."""
    trained = sorted(path.name for path in ROOT.glob("train_*.py"))
    programs = [[name, "sysu"] for name in (*trained, "test_sdcl.py")]
    programs += [["train_sdcl.py", "demo"]]  # the options of drawn people
    programs += [[name] for name in sorted(os.listdir(ROOT)) if name.startswith("prepare_")]
    programs += [[f"scripts/{path.name}"] for path in sorted((ROOT / "scripts").glob("*.py"))]
    programs += [["scripts/export.py", what] for what in ("embeddings", "labels", "model")]
    programs.remove(["scripts/check_env.py"])  # takes no option
    programs.append(["-m", "sdcl.data.synthetic"])
    found = {" ".join(words): in_this_process([*words, "--help"]) for words in programs}
    assert not [name for name, outcome in found.items() if outcome.status]
    return {name: outcome.said for name, outcome in found.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(helps, page):
    known = set(" ".join(helps.values()).replace(",", " ").replace("[", " ").replace("]", " ").split())
    unknown = options_shown(page) - known - NOT_OURS.keys()
    assert not unknown, f"{page.name} names {', '.join(sorted(unknown))}, which no program's --help explains"
