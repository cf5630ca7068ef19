"""Text files of any encoding: detected or named, and what does not belong to it is a bad record."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from openm6.data import DataConfig, open_source
from openm6.data.encodings import detect_encoding

ROWS = [("红苹果", "一种水果，味道很甜"), ("蓝色的碗", "陶瓷，可以放进洗碗机"), ("凳子", "木头做的")]


def text(end: str = "\n") -> str:
    return end.join(["title,text", *(f"{title},{about}" for title, about in ROWS), ""])


def titles(path: Path, **config: object) -> list[str]:
    settings = {"path": str(path), "shuffle": False, "max_bad_fraction": 0.5} | config
    return [record["title"] for record in open_source(DataConfig.model_validate(settings), seed=0, epochs=1)]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_spreadsheets_save_is_read(encoding: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(text(end).encode(encoding))
    assert titles(tmp_path / "a.csv") == [title for title, _ in ROWS]


def test_json_lines_are_read_in_any_encoding_too(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"title": title}, ensure_ascii=False) for title, _ in ROWS)
    for encoding in ("utf-16", "gb18030"):
        (tmp_path / "a.jsonl").write_bytes(lines.encode(encoding))
        assert titles(tmp_path / "a.jsonl") == [title for title, _ in ROWS]


def test_a_guess_is_said_and_another_encoding_can_be_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text().encode("gb18030"))
    with caplog.at_level(logging.WARNING):
        titles(path)
    assert "a.csv is not UTF-8: it is read as GB 18030" in caplog.text
    path.write_bytes("title,text\ncafé,crème\n".encode("cp1252"))
    assert titles(path, encoding="cp1252") == ["café"]
    path.write_bytes("title,text\n電腦,螢幕\n".encode("big5"))
    assert titles(path, encoding="big5") == ["電腦"]
    with pytest.raises(ValueError, match="there is no encoding 'klingon': say one that Python knows"):
        titles(path, encoding="klingon")
    with pytest.raises(ValueError, match=r"1 of 1 records are bad.*is not UTF-8"):
        titles(path, encoding="utf-8")


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_line_of_another_encoding_is_one_bad_record(encoding: str, tmp_path: Path) -> None:
    lines = [f"苹果{i},又红又甜".encode(encoding) for i in range(20)]
    lines[7] = b"caf\xe9,in Latin-1"
    (tmp_path / "a.csv").write_bytes(b"\n".join([b"title,text", *lines]))
    source = open_source(
        DataConfig(path=str(tmp_path / "a.csv"), encoding=None if encoding == "utf-8" else encoding),
        seed=0,
        epochs=1,
    )
    assert len(list(source)) == 19 and source.bad.count == 1 and "a.csv line 9: " in source.bad.first[0]


def test_western_text_is_not_taken_for_chinese() -> None:
    french = "Ça coûte très cher, même à l'été ; où êtes-vous allés ?\n" * 3
    assert detect_encoding(french.encode("latin-1")) == "utf-8"
    assert detect_encoding("naïve café\n".encode()) == "utf-8"
    assert detect_encoding(b"plain\n") == detect_encoding(b"") == "utf-8"
