"""The whole build, on a tiny folder of made-up npm packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from openm6.data.corpus import decode_image
from openm6.data.corpus.build import build, main
from openm6.data.corpus.icons import FAMILIES
from openm6.data.corpus.poems import read_poems

SQUARE = '<path d="M2 2h12v12H2z" fill="{}"/>'
EMOJI = [("1F34E", "🍎", "red apple", "红苹果", 4), ("2764-FE0F", "❤️", "red heart", "红心", 0)]


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("npm") / "node_modules"
    entries = [
        {"hexcode": code, "emoji": char, "label": name, "group": group, "subgroup": group}
        for code, char, name, _, group in EMOJI
    ]
    entries.append({"hexcode": "1F3FB", "emoji": "🏻", "label": "light skin tone", "group": 2, "subgroup": 2})
    entries.append({"hexcode": "1F1E6", "emoji": "🇦", "label": "regional indicator A"})
    write(root / "emojibase-data/en/data.json", entries)
    keys = {"0": "smileys-emotion", "2": "component", "4": "food-drink"}
    subkeys = {"0": "heart", "2": "skin-tone", "4": "food-fruit"}
    write(root / "emojibase-data/meta/groups.json", {"groups": keys, "subgroups": subkeys})
    messages = {
        kind: [{"key": key, "message": f"the {key}"} for key in table.values()]
        for kind, table in (("groups", keys), ("subgroups", subkeys))
    }
    write(root / "emojibase-data/en/messages.json", messages)
    for language, column in (("en", 2), ("zh", 3)):
        names = {
            row[1].replace("\ufe0f", ""): {"tts": [row[column]], "default": [row[column], "x"]}
            for row in EMOJI
        }
        names["🏻"] = {"tts": ["tone"]}
        base = {"annotations": {"annotations": names}}
        write(root / f"cldr-annotations-full/annotations/{language}/annotations.json", base)
        derived = {"annotationsDerived": {"annotations": {}}}
        write(root / f"cldr-annotations-derived-full/annotationsDerived/{language}/annotations.json", derived)
    # Both designs of Noto are the same red: the second is to be left out.
    fills = ["#d00", "#d00", "#e11", "#c00", "#f33", "#000", "#d44", "#b00"]
    for name, fill in zip(FAMILIES, fills, strict=True):
        icon = "redapple" if name == "fxemoji" else "red-apple"
        icons = {icon: {"body": SQUARE.format(fill)}, "red-heart": {"body": SQUARE.format(fill)}}
        write(root / f"@iconify-json/{name}/icons.json", {"icons": icons, "width": 16, "height": 16})
        chars = {"1f34e": icon, "2764": "red-heart"} if name in ("noto", "twemoji") else {}
        write(root / f"@iconify-json/{name}/chars.json", chars)
    song = root / "chinese-poetry/dist"
    poem = {
        "title": "登鸛雀樓",
        "author": "王之渙",
        "paragraphs": ["白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"],
    }
    write(song / "quantangshi/poet.tang.0.json", [poem, poem])
    write(song / "quantangshi/poet.song.0.json", [poem | {"paragraphs": ["□□□"]}])
    ci = {
        "rhythmic": "如梦令",
        "author": "李清照",
        "paragraphs": ["常记溪亭日暮。", "沉醉不知归路。", "兴尽晚回舟，误入藕花深处。"],
    }
    write(song / "songci/ci.song.0.json", [ci])
    return root


@pytest.fixture(scope="module")
def built(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "new" / "folder"
    # Seven sets draw each thing (Noto's twin is left out), but Firefox OS has no heart under that name.
    assert build(node_modules, out) == {"emoji": 13, "poems": 2}
    return out


def test_the_command_line_gives_the_same_bytes_again(
    node_modules: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["build", str(node_modules), str(tmp_path)])
    main()
    for name in ("emoji.parquet", "poems.parquet"):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()


def test_the_tables_hold_what_the_packages_say(built: Path) -> None:
    rows = pq.read_table(built / "emoji.parquet").to_pylist()
    assert [row["id"] for row in rows[:2]] == ["noto/1F34E", "twemoji/1F34E"]
    assert rows[0]["name_zh"] == "红苹果" and rows[0]["keywords_en"] == ["x"]
    assert (rows[0]["group_en"], rows[0]["subgroup_zh"]) == ("the food-drink", "水果")
    assert {row["colour_en"] for row in rows} == {"red", "black"}
    assert decode_image(rows[0]["image"])[32, 32].tolist() == [221, 0, 0, 255]
    poems = {row["title"]: row for row in pq.read_table(built / "poems.parquet").to_pylist()}
    assert poems["登鹳雀楼"]["text"] == "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
    assert {title: (row["dynasty"], row["form"]) for title, row in poems.items()} == {
        "登鹳雀楼": ("唐", "五绝"),
        "如梦令": ("宋", "词"),
    }


def test_missing_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"annotations\.json is missing; install"):
        build(tmp_path, tmp_path / "out")


def test_missing_poems_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no poet\.tang.*install the package chinese-poetry"):
        read_poems(tmp_path)
