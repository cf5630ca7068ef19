from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import openm6
from openm6.cli.caption import magic_of
from openm6.cli.draw import name_files
from openm6.decode.magic import Magic
from openm6.decode.pipeline import MAX_TEXT, Pipeline
from openm6.model.checkpoint import save_model
from tests import tiny


@pytest.fixture(scope="session")
def pictures(data_folder: Path) -> list[str]:
    return [str(data_folder / f"{colour}4.png") for colour in ("red", "green", "blue")]


def test_caption_says_what_python_says(cli: Any, model: Path, pictures: list[str]) -> None:
    for lang in ("en", "zh"):
        wanted = openm6.load(model).caption(pictures, lang=lang)
        found = cli.objects("caption", *pictures, "--lang", lang, "-m", model)
        assert [(each["input"], each["output"], each["lang"]) for each in found] == [
            (picture, text, lang) for picture, text in zip(pictures, wanted, strict=True)
        ]


def test_a_teller_captions_in_its_own_words(cli: Any, model: Path, pictures: list[str]) -> None:
    m6 = openm6.load(model)
    found = cli.objects("caption", *pictures, "--teller", model, "-m", model)
    assert [each["output"] for each in found] == m6.tell(pictures, m6)
    assert {each["lang"] for each in found} == {None}
    settings = ["--magic", "k=7", "--magic", "alpha=0", "--magic", "beta=9.5"]
    found = cli.objects("caption", *pictures, "--teller", model, *settings, "-m", model)
    assert [each["output"] for each in found] == m6.tell(pictures, m6, magic=Magic(k=7, alpha=0, beta=9.5))
    mistake = cli.mistake("caption", *pictures, "--teller", model, "--lang", "zh", "-m", model)
    assert "leave out --lang" in mistake


@pytest.mark.parametrize("command", [["caption"], ["caption", "--teller", "MODEL"], ["ask", "what is it?"]])
def test_texts_are_as_long_as_one_says(
    command: list[str], cli: Any, model: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = list[int]()

    def answer(_: Pipeline, images: list[str], *__: object, max_tokens: int, **more: object) -> list[str]:
        longest.append(max_tokens)
        return ["red"] * len(images)

    for verb in ("caption", "tell", "ask"):
        monkeypatch.setattr(Pipeline, verb, answer)
    said = [each.replace("MODEL", str(model)) for each in command]
    cli.objects(*said, pictures[0], "--max-tokens", 7, "-m", model)
    cli.objects(*said, pictures[0], "-m", model)
    assert longest == [7, MAX_TEXT]


def test_one_caption_is_the_text_alone_and_several_name_their_pictures(
    cli: Any, model: Path, pictures: list[str]
) -> None:
    texts = openm6.load(model).caption(pictures)
    assert cli("caption", pictures[0], "-m", model).stdout == texts[0] + "\n"
    lines = [f"{picture}: {text}\n" for picture, text in zip(pictures, texts, strict=True)]
    assert cli("caption", *pictures, "-m", model).stdout == "".join(lines)


def test_every_question_is_asked_of_every_picture(cli: Any, model: Path, pictures: list[str]) -> None:
    long = "what " * 100 + "is it?"  # longer than a file name may be
    found = cli.objects("ask", pictures[0], "这是什么？", pictures[1], long, "-m", model)
    asked = [(picture, question) for picture in pictures[:2] for question in ("这是什么？", long)]
    assert [(each["input"], each["question"]) for each in found] == asked
    answers = openm6.load(model).ask([picture for picture, _ in asked], [question for _, question in asked])
    assert [each["output"] for each in found] == answers


def test_every_setting_of_magic_has_its_type() -> None:
    every = ["k=7", "alpha=0.5", "beta=3", "plausible=0.1", "beams=2", "fluency=1"]
    assert magic_of(every) == Magic(k=7, alpha=0.5, beta=3.0, plausible=0.1, beams=2, fluency=1.0)
    assert magic_of([]) == Magic()


def test_match_ranks_the_texts_of_each_picture(cli: Any, model: Path, pictures: list[str]) -> None:
    texts = ["red square", "蓝色方块"]
    scores = openm6.load(model).match(pictures[:2], texts)
    found = cli.objects("match", *pictures[:2], *texts, "-m", model)
    assert [each["input"] for each in found] == pictures[:2]
    for each, row in zip(found, scores, strict=True):
        ranked = [(entry["text"], entry["score"]) for entry in each["output"]]
        wanted = sorted(zip(texts, row, strict=True), key=lambda pair: -pair[1])
        assert [text for text, _ in ranked] == [text for text, _ in wanted]
        np.testing.assert_allclose([s for _, s in ranked], [s for _, s in wanted], atol=1e-4)


def test_match_ranks_again(cli: Any, model: Path, pictures: list[str], tmp_path: Path) -> None:
    texts = [f"thing {i}" for i in range(130)]
    scores = openm6.load(model).rank_texts(pictures, texts)
    for each, row in zip(cli.objects("match", *pictures, *texts, "--rank", "-m", model), scores, strict=True):
        assert len(each["output"]) == 128  # what is no candidate has no score
        assert each["output"][0]["text"] == texts[int(row.argmax())]
        assert each["output"][0]["score"] == pytest.approx(float(row.max()), abs=1e-4)
    save_model(tiny.m6(match_dim=0), tmp_path)
    tiny.text_tokenizer().save(tmp_path / "tokenizer.json")
    assert "cannot rank" in cli.mistake("match", pictures[0], "red", "--rank", "-m", tmp_path)
    wrong = cli.mistake("match", pictures[0], "red", "--rank", "--by", "encoders", "-m", model)
    assert "no cross encoders" in wrong
    assert "--by goes with --rank" in cli.mistake(
        "match", pictures[0], "red", "--by", "captions", "-m", model
    )


def test_draw_saves_what_python_draws(cli: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "square.png"
    [found] = cli.objects("draw", "red square", "-o", out, "--size", 16, "--candidates", 2, "-m", model)
    assert found["input"] == "red square" and found["output"] == str(out)
    with Image.open(out) as image:
        assert image.format == "PNG"
        drawn = openm6.load(model).draw("red square", candidates=2)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(drawn))


@pytest.mark.parametrize(
    ("out", "files"),
    [("many.png", ["many-000.png", "many-001.png"]), ("folder/", ["folder/000.png", "folder/001.png"])],
)
def test_several_drawings_are_numbered(
    out: str, files: list[str], cli: Any, model: Path, tmp_path: Path
) -> None:
    texts = ["red square", "蓝色方块"]
    found = cli.objects("draw", *texts, "-o", f"{tmp_path}/{out}", "--candidates", 1, "-m", model)
    assert [each["input"] for each in found] == texts
    assert [each["output"] for each in found] == [str(tmp_path / file) for file in files]
    assert [Image.open(each["output"]).size for each in found] == [(256, 256)] * 2


@pytest.mark.parametrize(
    ("out", "count", "files"),
    [
        ("ball", 1, ["ball.png"]),
        ("ball/", 1, ["ball/000.png"]),
        ("there", 1, ["there/000.png"]),
        ("ball", 2, ["ball/000.png", "ball/001.png"]),
    ],
)
def test_a_name_without_a_suffix_is_a_file_for_one_text(
    out: str, count: int, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    assert name_files(f"{tmp_path}/{out}", count) == [tmp_path / file for file in files]


def test_the_seed_decides_what_is_drawn_and_written(cli: Any, model: Path, tmp_path: Path) -> None:
    def drawn(seed: int) -> bytes:
        out = tmp_path / "out.png"
        cli.objects("draw", "red square", "-o", out, "--seed", seed, "--candidates", 1, "-m", model)
        return out.read_bytes()

    def written(seed: int) -> str:
        return cli.objects("write", "春", "--seed", seed, "-m", model)[0]["output"]

    for make in (drawn, written):
        assert make(1) == make(1) != make(2)


def test_write_and_continue(cli: Any, model: Path) -> None:
    poems = cli.objects("write", "春1", "春2", "--form", "五绝", "--author", "李白", "-m", model)
    assert [(each["input"], each["form"], each["author"]) for each in poems] == [
        ("春1", "五绝", "李白"),
        ("春2", "五绝", "李白"),
    ]
    wanted = openm6.load(model).write(["春1", "春2"], form="五绝", author="李白")
    assert [each["output"] for each in poems] == wanted
    [text] = cli.objects("write", "白日依山尽，", "--continue", "-m", model)
    assert text["output"].startswith("白日依山尽，")


def test_without_a_model_the_shipped_one_answers(cli: Any, shipped: Path, pictures: list[str]) -> None:
    assert cli.objects("caption", pictures[0]) == cli.objects("caption", pictures[0], "-m", shipped)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["caption", "/no/such.png"], "/no/such.png: no such file"),
        (["caption", "TEXT"], "not an image in a known format"),
        (["caption", "PICTURE", "TEXT"], "not an image in a known format"),
        (["caption", "PICTURE", "--lang", "fr"], "must be en or zh, not 'fr'"),
        (["caption", "PICTURE", "-m", "/no/model"], "no checkpoint folder /no/model"),
        (["caption", "PICTURE", "-m", "FOLDER"], "is not a checkpoint folder: it has no config.json"),
        (["caption", "PICTURE", "--max-tokens", "0"], "max_tokens must lie between 1 and 2048, not 0"),
        (["caption", "PICTURE", "--magic", "k=9"], "leave it out, or name the teller's folder"),
        (["caption", "PICTURE", "--teller", "FOLDER", "--magic", "k"], "must be NAME=VALUE, such as k=200"),
        (["caption", "PICTURE", "--teller", "FOLDER", "--magic", "K=9"], "no setting 'K': choose one of k,"),
        (["caption", "PICTURE", "--teller", "FOLDER", "--magic", "k=9.5"], "k must be a whole number"),
        (["caption", "PICTURE", "--teller", "FOLDER", "--magic", "beta=x"], "beta must be a number, not 'x'"),
        (["caption", "PICTURE", "--teller", "FOLDER", "--magic", "alpha=2"], "alpha from 0 to 1"),
        (["ask", "PICTURE"], "needs a question"),
        (["ask", "what is it?"], "there is no picture file among 'what is it?'"),
        (["ask", "PICTURE", ""], "a question must be text that says something"),
        (["ask", "FOLDER", "what is it?"], "is a folder; name the pictures in it"),
        (["match", "PICTURE"], "at least one text"),
        (["match", "PICTURE", " "], "a text must be text that says something"),
        (["draw", " "], "must say something"),
        (["draw", "cat", "-o", "FOLDER/cat.jpg"], "saved as PNG"),
        (["draw", "cat", "-o", "TEXT/cat.png"], "cannot make the folder"),
        (["draw", "cat", "-o", "FOLDER/cat.png", "--size", "0"], "--size must lie between"),
        (["draw", "cat", "-o", "FOLDER/cat.png", "--candidates", "0"], "candidates must be at least 1"),
        (["draw", "cat", "-o", "FOLDER/cat.png", "--style", "twemojy"], "did you mean twemoji?"),
        (["write", ""], "a title must be text that says something"),
        (["write", "春", "--form", "十四行"], "no form '十四行': choose one of"),
        (["write", "春", "--continue", "--form", "五绝"], "leave out --form"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], words: str, cli: Any, shipped: Path, pictures: list[str], tmp_path: Path
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    folder = tmp_path / "folder"
    folder.mkdir()
    places = {"PICTURE": pictures[0], "TEXT": str(text), "FOLDER": str(folder)}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert words in cli.mistake(*arguments)
    assert list(folder.iterdir()) == []


def test_the_command_line_itself_is_checked(cli: Any) -> None:
    for arguments in (["caption"], ["draw", "cat", "--size", "big"], ["nonsense"], ["caption", "--nonsense"]):
        result = cli(*arguments)
        assert result.exit_code == 2
        assert result.stderr and "Traceback" not in result.stderr
    assert cli("--version").stdout == f"openm6 {openm6.__version__}\n"
