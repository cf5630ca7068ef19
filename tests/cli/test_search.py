"""openm6 search: what it prints is what Python answers; mistakes are told in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openm6.search import Index


@pytest.fixture(scope="module")
def shop(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The squares of the tiny model's training data, with prices."""
    folder = tmp_path_factory.mktemp("shop")
    lines = ["id,photo,kind,price"]
    for i, path in enumerate(sorted(data_folder.glob("*.png"))):
        lines.append(f"{path.stem},{path},{path.stem[:-1]},{100 * i}")
    lines.append("broken,none.png,red,5")
    (folder / "items.csv").write_text("\n".join(lines))
    return folder


def indexed(cli: Any, shop: Path, to: Path, *arguments: object) -> dict[str, Any]:
    columns = ("--column", "image=photo", "--column", "category=kind", "--max-bad", 0.1)
    [found] = cli.objects("search", "index", shop / "items.csv", "--to", to, *columns, *arguments)
    return found["output"]


def test_index_and_query(cli: Any, shop: Path, model: Path, tmp_path: Path) -> None:
    to = tmp_path / "index"
    found = indexed(cli, shop, to, "--encoder", f"m6:{model}")
    assert (found["added"], found["bad"]) == (9, 1) and "none.png: no such file" in found["reasons"][0]
    assert indexed(cli, shop, to)["unchanged"] == 9  # the encoder is the index's

    picture = (shop / "items.csv").read_text().splitlines()[1].split(",")[1]
    where = "category = 'blue' and price < 200"
    [found] = cli.objects("search", "query", picture, "--index", to, "--where", where, "-n", 5)
    wanted = Index.open(str(to)).query(image=picture, where=where, n=5)
    assert found["input"] == {"image": picture, "where": where}
    assert [(each["id"], each["attributes"]) for each in found["output"]] == [
        (hit.id, hit.attributes) for hit in wanted
    ]
    assert {each["id"] for each in found["output"]} == {"blue2", "blue4"}

    options = ("--index", to, "--where", "category = 'blue'", "-n", 2)
    pages = [cli.objects("search", "query", *options, *after)[0] for after in ((), ("--after", "blue4"))]
    assert [[each["id"] for each in page["output"]] for page in pages] == [["blue2", "blue4"], ["blue6"]]

    result = cli("search", "query", "red square", "--image", picture, "--index", to, "-n", 3)
    wanted = Index.open(str(to)).query(image=picture, text="red square", n=3)
    assert [line.split()[1] for line in result.stdout.splitlines()] == [hit.id for hit in wanted]
    assert "category=" in result.stdout and "price=" in result.stdout
    cheap = cli.objects("search", "query", "red square", "--index", to, "--quality", "price=-9", "-n", 1)
    assert cheap[0]["output"][0]["id"] == "blue2"


def test_deletes_of_more_than_a_tenth_are_asked_for(
    cli: Any, shop: Path, model: Path, tmp_path: Path
) -> None:
    to, cut = tmp_path / "index", tmp_path / "cut" / "items.csv"
    indexed(cli, shop, to, "--encoder", f"m6:{model}")
    cut.parent.mkdir()
    cut.write_bytes("\n".join((shop / "items.csv").read_text().splitlines()[:6]).encode("utf-16"))
    columns = ("--column", "image=photo", "--column", "category=kind")
    said = cli.mistake("search", "index", cut, "--to", to, *columns)
    assert "lacks 4 of the 9 items of the index" in said and "--allow-deletes" in said
    assert indexed(cli, cut.parent, to, "--allow-deletes", "--encoding", "utf-16")["deleted"] == 4


def test_shards_answer_as_one(cli: Any, shop: Path, model: Path, tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    indexed(cli, shop, one, "--encoder", f"m6:{model}")
    assert indexed(cli, shop, two, "--to", three, "--encoder", f"m6:{model}")["added"] == 9
    [whole] = cli.objects("search", "query", "green square", "-i", one)
    [merged] = cli.objects("search", "query", "green square", "-i", two, "-i", three)
    assert merged["output"] == whole["output"] and len(whole["output"]) == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["query", "red", "--index", "NONE"], "there is no index at this address yet"),
        (["query", "--index", "INDEX"], "needs a picture, a text, or a filter"),
        (["query", "/no/such.png", "--index", "INDEX"], "/no/such.png: no such file"),
        (["query", "red", "--text", "blue", "--index", "INDEX"], "two queries of one kind"),
        (["query", "red", "--index", "INDEX", "--where", "colour = 1"], "the index has no column 'colour'"),
        (["query", "red", "--index", "INDEX", "-n", "0"], "n must lie between"),
        (["query", "red", "--index", "INDEX", "--quality", "price"], "--quality must be COLUMN=WEIGHT"),
        (["query", "red", "--index", "INDEX", "--quality", "price=x"], "a number, not 'price=x'"),
        (["query", "red", "--index", "INDEX", "--encoder", "clip"], "there is no encoder 'clip'"),
        (["index", "NONE", "--to", "INDEX"], "there is no file or folder at"),
        (["index", "CSV", "--to", "INDEX", "--column", "photo"], "--column must be OURS=THEIRS"),
        (["index", "CSV", "--to", "INDEX"], "has no column 'image'"),
        (["index", "CSV", "--to", ""], "the address of an index is empty"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], words: str, cli: Any, shop: Path, shop_index: Path
) -> None:
    places = {"NONE": shop / "none", "INDEX": shop_index, "CSV": shop / "items.csv"}
    assert words in cli.mistake("search", *(places.get(each, each) for each in arguments))


@pytest.fixture(scope="module")
def shop_index(cli: Any, shop: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("index") / "index"
    indexed(cli, shop, to, "--encoder", f"m6:{model}")
    return to
