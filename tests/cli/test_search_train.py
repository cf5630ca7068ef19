"""openm6 search train and simulate: from a catalogue to an encoder that indexes; mistakes in a sentence."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("efficientnet_lite_pytorch")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures in two colours."""
    folder = tmp_path_factory.mktemp("shop")
    lines = ["id,photo,kind"]
    for i in range(16):
        colour = (200 + i, 20 + i, 30) if i % 2 == 0 else (20, 40 + i, 200 + i)
        Image.new("RGB", (40, 30), colour).save(folder / f"{i}.png")
        lines.append(f"i{i},{i}.png,{'blue' if i % 2 else 'red'}")
    (folder / "items.csv").write_text("\n".join(lines))
    return folder / "items.csv"


def test_an_encoder_is_trained_on_a_simulated_log_and_indexes(
    cli: Any, catalogue: Path, tmp_path: Path
) -> None:
    columns = ("--column", "image=photo", "--column", "category=kind")
    [log] = cli.objects("search", "simulate", catalogue, "--out", tmp_path / "log", "--views", 8, *columns)
    assert log["page_views"] == 8 and Path(log["output"]).is_file()
    out, to = tmp_path / "my encoder", tmp_path / "my encoder-index"
    options = ("--clicks", log["output"], "--passes", 2, "--view-passes", 2, "--image-size", 64, *columns)
    [made] = cli.objects("search", "train", catalogue, "--out", out, *options)
    assert (made["items"], made["categories"], made["page_views"]) == (16, ["blue", "red"], 8)
    printed = cli(
        "search", "train", catalogue, "--out", out, *options
    ).stdout  # it goes on where it has ended
    command = shlex.split(printed.partition("use it: ")[2])
    assert command[0] == "openm6"
    [found] = cli.objects(*command[1:])
    assert found["output"]["added"] == 16
    [hits] = cli.objects("search", "query", catalogue.parent / "4.png", "--index", to, "-n", 1)
    assert hits["output"][0]["id"] == "i4"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "ITEMS", "--out", "OUT", "--image-size", "50"], "--image-size: Input should be"),
        (["train", "ITEMS", "--out", "OUT", "--column", "kind"], "--column must be OURS=THEIRS"),
        (["train", "ITEMS", "--out", "OUT", "--clicks", "/no/log"], "/no/log: No such file"),
        (["train", "ITEMS", "--out", "OUT", "--column", "image=photo"], "there is nothing to learn from"),
        (
            ["simulate", "ITEMS", "--out", "OUT", "--column", "image=photo", "--encoder", "clip"],
            "no encoder 'clip'",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], words: str, cli: Any, catalogue: Path, tmp_path: Path
) -> None:
    places = {"ITEMS": catalogue, "OUT": tmp_path / "out"}
    assert words in cli.mistake("search", *(places.get(each, each) for each in arguments))
