from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from openm6.cli import app
from openm6.cli.arguments import check_writable, split_pictures
from openm6.cli.errors import cleanly
from openm6.cli.output import to_json


def verb_that_raises(error: BaseException) -> Callable[[], None]:
    def verb() -> None:
        raise error

    return cleanly(verb)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ValueError("the value\n  is   bad"), 2, "openm6: the value is bad\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.png"),
            2,
            "openm6: x.png: No such file or directory\n",
        ),
        (OSError(28, "No space left on device"), 2, "openm6: No space left on device\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (KeyboardInterrupt(), 130, "openm6: stopped\n"),
    ],
)
def test_what_a_user_causes_is_told_in_a_sentence(error: BaseException, code: int, sentence: str) -> None:
    alone = typer.Typer()
    alone.command()(verb_that_raises(error))
    result = CliRunner().invoke(alone, [])
    assert result.exit_code == code
    assert result.stderr.startswith(sentence) and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "where", "from_"),
    [
        (["draw", "cat", "-o", "OUT/cat.png"], "openm6.load", None),
        (["caption", "cat.png"], "openm6.load", None),
        (["search", "query", "cat", "-i", "OUT"], "openm6.search.Index.open", None),
        (["search", "index", "shop.csv", "--to", "OUT"], "openm6.search.Index.open", "items"),
        (
            ["search", "train", "shop.csv", "-o", "OUT"],
            "openm6.search.learned.items.Items.read",
            "checkpoint",
        ),
        (["train", "quickstart"], "openm6.cli.train.find_recipe", "checkpoint"),
        (["quickstart"], "openm6.cli.quickstart.find_recipe", "checkpoint"),
    ],
)
def test_only_what_goes_on_says_so_when_it_is_stopped(
    command: list[str], where: str, from_: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    result = CliRunner().invoke(app, [each.replace("OUT", str(tmp_path)) for each in command])
    assert result.exit_code == 130
    if from_ is None:
        assert result.stderr == "openm6: stopped\n"
    else:
        assert result.stderr.startswith(f"openm6: stopped; the same command goes on from its last {from_}")


def test_what_no_user_can_cause_is_not_hidden() -> None:
    for error in (KeyError("x"), AssertionError("never"), OSError("not from the system")):
        with pytest.raises(type(error)):
            verb_that_raises(error)()


def test_a_reader_that_leaves_early_and_a_full_disk(data_folder: Path) -> None:
    command = [sys.executable, "-m", "openm6", "data", str(data_folder / "poems.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, "")
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "openm6: No space left on device\n")


def test_files_are_pictures_whatever_their_name(tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(b"")
    assert split_pictures([str(file), "no.PNG", "what is it?"]) == ([str(file), "no.PNG"], ["what is it?"])


def test_a_place_to_write_is_checked_before_work_is_done(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "file.png")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(ValueError, match="is a folder"):
        check_writable(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the folder"):
        check_writable(tmp_path / "file" / "out.png")


def test_json_stays_utf8_with_any_file_name() -> None:
    assert to_json({"input": "红.png", "output": "a"}) == '{"input": "红.png", "output": "a"}'
    broken = b"\xff.png".decode("utf-8", "surrogateescape")
    assert (
        to_json({"input": broken, "output": "a"}).encode("utf-8")
        == b'{"input": "\\udcff.png", "output": "a"}'
    )
