"""CSV as strangers write it: stray quotes stay in their line, delimiters are found, empty columns are dropped."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openm6.data import BadRecord, DataConfig, open_reader

GOOD = [f"{index},red.png,{index} inches" for index in range(1000)]


def read(path: Path) -> tuple[list[dict[str, object]], list[str]]:
    """(records, what is wrong with the bad ones)."""
    config = DataConfig(path=str(path), columns={"id": "id", "caption_en": "size"})
    found, bad = list[dict[str, object]](), list[str]()
    reader = open_reader(config)
    for number in range(reader.n_blocks):
        block = reader.block(number)
        for index in range(len(block)):
            try:
                found.append(block[index])
            except BadRecord as error:
                bad.append(str(error))
    return found, bad


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.write_bytes((end.join(["id,image,size", *lines]) + end).encode())
    return path


@pytest.mark.parametrize(
    "later",
    [
        {},  # the quote never closes
        {500: '500,red.png,"a, quoted"'},  # another field opens with a quote
        {500: '500,red.png,""'},  # a doubled quote, from inside
        {180: '180,red.png,30"'},  # a second stray quote that would close the first
        {101: '101,red.png,30"'},
        {500: '500,red.png,"over\ntwo lines"'},
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_stray_quote_costs_its_own_line(later: dict[int, str], end: str, tmp_path: Path) -> None:
    lines = [later.get(index, line) for index, line in enumerate(GOOD)]
    lines[100] = '100,red.png,"24in'
    found, bad = read(write(tmp_path / "a.csv", lines, end))
    empty = [500] if later.get(500, "").endswith('""') else []
    assert [record["id"] for record in found] == [str(i) for i in range(1000) if i not in (100, *empty)]
    assert bad[0] == "a.csv line 102: a quote opens a field in this line and does not close it"
    assert len(bad) == 1 + len(empty)


def test_many_stray_quotes_cost_their_own_lines_in_time_that_grows_with_the_file(tmp_path: Path) -> None:
    lines = [line if index % 10 else f'{index},red.png,"24in' for index, line in enumerate(GOOD * 20)]
    found, bad = read(write(tmp_path / "a.csv", lines))
    assert len(found) == 18_000 and len(bad) == 2_000


def test_a_long_quoted_field_with_line_ends_is_one_record(tmp_path: Path) -> None:
    poem = "\n".join(f"a line, and so on {index}" for index in range(20_000))
    assert len(poem) > 3 * 131_072
    found, bad = read(write(tmp_path / "a.csv", [GOOD[0], f'1,red.png,"{poem}"', GOOD[2]]))
    assert [record["caption_en"] for record in found] == ["0 inches", poem, "2 inches"] and bad == []
    huge = "x, y\n" * 2**22
    found, bad = read(write(tmp_path / "b.csv", [GOOD[0], f'1,red.png,"{huge}"', GOOD[2]]))
    assert [record["id"] for record in found] == ["0", "2"]
    assert len(bad) == 1 and "b.csv line 3: the row is huge" in bad[0]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(*[st.text(st.sampled_from(list('ab ,;"\n\t é猫')), max_size=12)] * 3),
        min_size=1,
        max_size=8,
    )
)
def test_what_pythons_writer_writes_is_read_back(
    rows: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = io.StringIO(newline="")
    # Prose in which every line has the commas of a row is taken for rows; a blank after the comma makes it prose.
    rows = [
        (a.replace(",", ", "), f"i{number}", c.replace(",", ", ")) for number, (a, _, c) in enumerate(rows)
    ]
    csv.writer(file).writerows([("size", "id", "more"), *rows])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(file.getvalue().encode())
    found, bad = read(path)
    assert [(record["caption_en"], record["id"]) for record in found] == [
        (a.strip(), name) for a, name, _ in rows if a.strip()
    ]
    assert all("is empty" in why for why in bad) and len(found) + len(bad) == len(rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id;image;size\n1;red.png;12,5 cm\n"),
        ("a.csv", "id\timage\tsize\n1\tred.png\t12,5 cm\n"),
        ("a.csv", "id|image|size\n1|red.png|12,5 cm\n"),
        ("a.tsv", "id,image,size\n1,red.png,\"12,5 cm\"\n"),
        ("a.csv", 'id;"image; the, first, one";size\n1;red.png;12,5 cm\n'),
        ("a.csv", "id,image,size,,\n1,red.png,\"12,5 cm\",,\n,,,,\n"),
        ("a.csv", "id,image,size,,\n1,red.png,\"12,5 cm\"\n"),
        ("a.csv", "id,image,size\n1,red.png,\"12,5 cm\",,\n"),
        ("a.csv", "id,image,size\r1,red.png,\"12,5 cm\"\r"),
        ("a.csv", 'id,image,size\n1,red.png,"12,5 cm" \n'),
    ],
)  # fmt: skip
def test_delimiters_are_found_and_empty_columns_dropped(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read(tmp_path / name) == ([{"id": "1", "caption_en": "12,5 cm"}], [])


def test_a_column_without_a_name_is_named_and_a_value_behind_the_header_is_bad(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pandas.csv").write_text(",id,size,\n0,a,small,\n1,b,large,oops\n")
    with caplog.at_level(logging.WARNING):
        found, bad = read(tmp_path / "pandas.csv")
    assert found == [{"id": "a", "caption_en": "small"}]
    assert bad == ["pandas.csv line 3: the row has 4 fields, the header has 3"]
    assert "pandas.csv: column 1 has no name and is not read" in caplog.text
