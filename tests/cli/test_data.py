from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openm6.cli.data import brief
from openm6.data.music import write_midi
from tests.data.music.scores import duet


def test_a_file_is_counted_and_its_fields_are_named(cli: Any, data_folder: Path) -> None:
    path = data_folder / "pictures.csv"
    [found] = cli.objects("data", path)
    assert found["input"] == str(path)
    output = found["output"]
    assert (output["records"], output["bad"], output["bad_records"]) == (9, 0, [])
    assert output["fields"]["image"] == {"kind": "picture", "records": 9}
    assert output["fields"]["caption_zh"] == {"kind": "text", "records": 9}
    assert [record["caption_en"] for record in output["first"]] == ["red square"] * 3
    assert output["first"][0]["image"] == "64x64 RGB"
    printed = cli("data", path).stdout
    assert printed.startswith(f"{path}: 9 records, 0 bad\n") and "红色方块" in printed


def test_columns_are_mapped_and_reading_can_stop_early(cli: Any, data_folder: Path) -> None:
    path = data_folder / "pictures.csv"
    [found] = cli.objects("data", path, "--column", "caption_en=question", "--limit", 2)
    assert found["output"]["records"] == 2
    assert set(found["output"]["fields"]) == {"caption_en", "id"}
    assert found["output"]["first"][1]["caption_en"] == "what colour is it?"


def test_the_encoding_can_be_said(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("title,text\ncafé,crème\n".encode("cp1252"))
    assert "is not UTF-8" in cli("data", tmp_path / "a.csv").stdout
    [found] = cli.objects("data", tmp_path / "a.csv", "--encoding", "cp1252")
    assert found["output"]["first"][0]["title"] == "café"
    assert "there is no encoding 'klingon'" in cli.mistake(
        "data", tmp_path / "a.csv", "--encoding", "klingon"
    )


def test_the_kind_can_be_said(cli: Any, data_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "poems.txt"
    file.write_bytes((data_folder / "poems.jsonl").read_bytes())
    assert cli("data", file).exit_code == 2
    [found] = cli.objects("data", file, "--kind", "jsonl")
    assert found["output"]["records"] == 4


def test_a_recipe_means_all_of_its_data_once(cli: Any, recipe: Path, data_folder: Path) -> None:
    found = cli.objects("data", recipe)
    assert [(each["input"], each["output"]["records"]) for each in found] == [
        (f"{data_folder}/pictures.csv", 9),
        (f"{data_folder}/poems.jsonl", 4),
    ]


def test_the_embedded_corpus_goes_by_its_name(cli: Any) -> None:
    [found] = cli.objects("data", "corpus-poems", "--split", "val", "--limit", 5)
    assert found["input"] == "corpus-poems val"
    assert found["output"]["records"] == 5 and "title" in found["output"]["fields"]


def test_a_folder_of_midi_files_is_surveyed(cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("mido")
    write_midi(duet(), tmp_path / "a.mid")
    (tmp_path / "b.mid").write_bytes(b"RIFF and so on")
    result = cli("data", tmp_path)
    assert result.exit_code == 2
    assert "1 records, 1 bad" in result.stdout
    assert "b.mid: not a MIDI file (it does not start with MThd)" in result.stdout
    assert "2 tracks, 3 bars, 6 notes" in result.stdout


def test_bad_records_are_named_and_too_many_are_an_error(cli: Any, data_folder: Path, tmp_path: Path) -> None:
    good = [f"{data_folder}/red2.png,red" for _ in range(39)]
    path = tmp_path / "some.csv"
    path.write_text("\n".join(["image,caption_en", *good, "missing.png,red", ""]))
    result = cli("data", path)
    assert result.exit_code == 0, result.output
    assert "39 records, 1 bad" in result.stdout and "no such file" in result.stdout

    path.write_text("\n".join(["image,caption_en", *good, *["missing.png,red"] * 12, ""]))
    result = cli("data", path)
    assert result.exit_code == 2
    assert "39 records, 12 bad" in result.stdout and "and 2 more" in result.stdout
    assert "12 of 51 records" in result.stderr and "training would stop" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such.csv"], "/no/such.csv"),
        (["/no/such.yaml"], "no recipe '/no/such.yaml'"),
        ([""], "one of the arguments is empty"),
        (["DATA/pictures.csv", "--column", "caption_en"], "must be FIELD=COLUMN"),
        (["DATA/pictures.csv", "--column", "caption_en=captoin_en"], "did you mean 'caption_en'"),
        (["DATA/pictures.csv", "--kind", "xml"], "--kind must be one of auto, "),
        (["corpus-emoji", "--split", "test"], "unknown split 'test'"),
        (["m6-small", "--split", "val"], "is a recipe"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], words: str, cli: Any, data_folder: Path
) -> None:
    assert words in cli.mistake("data", *(each.replace("DATA", str(data_folder)) for each in arguments))


def test_values_are_shown_in_a_line() -> None:
    assert brief(["a", "b"]) == "a, b"
    assert brief("x\n y") == "x y"
    assert len(brief("x" * 1000)) == 60
    assert brief(1.5) == 1.5 and brief(None) is None
