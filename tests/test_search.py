"""The nearest images of one query, from the command line."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_runs import draw_people, make_run

from scripts import search
from sdcl.errors import UserError
from sdcl.frame.export import folder_embeddings
from sdcl.models import Embeddings, retrieval_features


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    people = draw_people(folder / "people")
    return people, make_run(folder / "run", people) / "best.pth"


@pytest.fixture
def run(made, monkeypatch, capsys, tmp_path):
    people, checkpoint = made

    def run(*arguments, query=None, gallery=None):
        query = query or sorted((people / "cam3").rglob("*.jpg"))[0]
        words = ["--checkpoint", checkpoint, "--query", query, "--gallery", gallery or people / "cam1", *arguments]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["search.py", *map(str, words)])
        search.main()
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    return run


def features(checkpoint, folder, modality):
    found = folder_embeddings(checkpoint, folder, modality)
    levels = Embeddings(*(torch.from_numpy(found[level]) for level in ("deep", "shallow")))
    return list(found["paths"]), retrieval_features(levels, True)


@pytest.mark.slow
def test_table_and_picture(made, run, tmp_path):
    """Order and similarities are those of the embeddings; the picture has a line for every ten."""
    people, checkpoint = made
    lines = run("--top", "12")
    assert lines[0] == ["rank", "similarity", "image"] and len(lines) == 14
    paths, gallery = features(checkpoint, people / "cam1", "visible")
    queries, rows = features(checkpoint, people / "cam3", "infrared")
    similarity = rows[0] @ gallery.t()
    order = similarity.argsort(descending=True, stable=True)[:12].tolist()
    assert [line[2] for line in lines[1:13]] == [paths[i] for i in order]
    assert [line[0] for line in lines[1:13]] == [str(n) for n in range(1, 13)]
    for line, i in zip(lines[1:], order, strict=False):
        assert float(line[1]) == pytest.approx(float(similarity[i]), abs=2e-4)
    assert lines[-1][0] == "search.png"
    with Image.open(tmp_path / "search.png") as picture:
        assert picture.width > 1500 and picture.height > 700


def test_the_other_direction_and_the_query_itself(made, run, tmp_path):
    """A query in its own gallery is left out."""
    people, _ = made
    query = sorted((people / "cam1").rglob("*.jpg"))[0]
    others = sorted(query.parent.glob("*.jpg"))
    lines = run("--query-modality", "visible", "--output", tmp_path / "a.png", query=query, gallery=query.parent)
    assert {line[2] for line in lines[1:-1]} == {str(path) for path in others} - {str(query)}
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["--top", "0"], {}, "--top is 0"),
        ([], {"query": Path("none.jpg")}, "none.jpg"),
        ([], {"gallery": Path("no-folder")}, "no-folder"),
        (["--output", "no-folder/a.png"], {}, "no-folder does not exist"),
    ],
)
def test_what_is_wrong_is_said(run, arguments, changes, message):
    with pytest.raises(UserError, match=message):
        run(*arguments, **changes)
