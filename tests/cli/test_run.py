"""`openm6 run`: texts, pictures and embeddings of any registered task, and what it says of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import openm6
from openm6.tasks import TASKS, Task

pytestmark = pytest.mark.usefixtures("shipped")


@pytest.fixture
def picture(data_folder: Path) -> Path:
    return data_folder / "red2.png"


def test_a_known_task_gives_what_its_verb_gives(cli: Any, picture: Path, model: Path) -> None:
    m6 = openm6.load(model)
    [made] = cli.objects("run", "caption", f"image={picture}", "lang=en", "--max-tokens", "6")
    assert made["output"] == m6.caption(picture, lang="en", max_tokens=6)
    assert made["input"] == {"image": str(picture), "lang": "en"} and made["task"] == "caption"
    [mark] = cli.objects("run", "match", f"image={picture}")
    assert len(mark["output"]) == 8 and sum(x * x for x in mark["output"]) == pytest.approx(1, abs=1e-4)


def test_a_new_task_is_decoded_as_soon_as_it_is_registered(
    cli: Any, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("shout", ("[IMAGE:image] <caption> [TEXT:before] -> [TEXT:after]",), lambda *_: None)
    monkeypatch.setitem(TASKS, "shout", task)
    [made] = cli.objects("run", "shout", f"image={picture}", "before=red", "--max-tokens", "4")
    assert isinstance(made["output"], str)
    listed = {each["input"]: each for each in cli.objects("run")}
    assert listed["shout"]["reads"] == [{"image": "picture", "before": "text"}]
    assert set(listed) == set(TASKS)


def test_records_come_from_a_file_with_pictures_beside_it(cli: Any, picture: Path, tmp_path: Path) -> None:
    Image.open(picture).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "lang": lang} for lang in ("en", "zh")]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    made = cli.objects("run", "caption", "--records", tmp_path / "r.jsonl", "--max-tokens", "4")
    assert [each["input"]["lang"] for each in made] == ["en", "zh"]
    assert made[0]["input"]["image"] == str(tmp_path / "a.png")


def test_pictures_are_saved_and_the_seed_decides(cli: Any, tmp_path: Path) -> None:
    def drawn(name: str, *more: str) -> bytes:
        [made] = cli.objects("run", "draw", *more, "-o", tmp_path / name)
        assert made["output"] == str(tmp_path / name)
        return (tmp_path / name).read_bytes()

    fields = ("text=red square", "style=any")
    assert drawn("a.png", *fields) == drawn("b.png", *fields)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (16, 16)


def test_sampling_follows_its_seed(cli: Any) -> None:
    def written(seed: int) -> str:
        options = ("--temperature", "1.5", "--top-p", "0.9", "--seed", str(seed), "--max-tokens", "12")
        [made] = cli.objects("run", "lm", *options)  # reads nothing, so one record is understood
        return made["output"]

    assert written(1) == written(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["captoin"], ["no task 'captoin'", "did you mean caption"]),
        (["caption"], ["reads image=... lang=...", "--records"]),
        (["caption", "image"], ["FIELD=VALUE"]),
        (["caption", "lang=en"], ["the task caption reads image and lang", "has lang"]),
        (["caption", "image=/no/such.png", "lang=en"], ["/no/such.png"]),
        (["caption", "--records", "/no/such.jsonl"], ["/no/such.jsonl"]),
        (["caption", "image=x", "--records", "/no/such.jsonl"], ["leave out image=x"]),
        (["draw", "text=a", "-o", "a.jpg"], ["*.png"]),
        (["caption", "image=x", "lang=en", "--temperature", "-1"], ["temperature"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(cli: Any, arguments: list[str], words: list[str]) -> None:
    sentence = cli.mistake("run", *arguments)
    assert [word for word in words if word not in sentence] == []


def test_a_record_that_is_no_object_is_named_by_its_line(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"image": "a.png"}\n[1]\n', encoding="utf-8")
    assert "line 2 is no JSON object: [1]" in cli.mistake("run", "caption", "--records", tmp_path / "r.jsonl")
