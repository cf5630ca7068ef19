"""The log of clicks: written and read, and what is said of a bad line."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openm6.search.learned.clicks import PageView, read_page_views, write_page_views

GOOD = {"query": "q.jpg", "shown": ["a", "b", "c"], "clicked": ["b"]}
IDS = st.lists(
    st.text(string.ascii_letters + '项目 "\\', min_size=1, max_size=6), min_size=1, max_size=6, unique=True
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    pages=st.lists(st.tuples(IDS, st.integers(0, 6), st.none() | st.text(max_size=4)), min_size=1, max_size=5)
)
def test_what_was_written_is_read(tmp_path: Path, pages: list[tuple[list[str], int, str | None]]) -> None:
    log = tmp_path / "log.jsonl"
    views = [
        PageView(tmp_path / "q" / f"{i}.jpg", tuple(shown), tuple(shown[:n]), user)
        for i, (shown, n, user) in enumerate(pages)
    ]
    write_page_views(log, views)
    assert read_page_views(log) == views


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": 3}, "'query' must be the path of a picture"),
        ({"query": ""}, "'query' must be the path of a picture"),
        ({"query": "a\0b"}, "'query' must be the path of a picture"),
        ({"shown": []}, "'shown' is empty"),
        ({"shown": "abc"}, "'shown' must be a list of ids, which are texts"),
        ({"shown": ["a", 1]}, "'shown' must be a list of ids, which are texts"),
        ({"shown": ["a", "a", "b"]}, "'shown' has an id twice"),
        ({"clicked": ["d"]}, "'d' was clicked and not shown"),
        ({"clicked": None}, "'clicked' must be a list of ids, which are texts"),
        ({"user": 5}, "'user' must be a text"),
    ],
)
def test_a_bad_line_is_named_and_skipped(
    tmp_path: Path, change: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log.jsonl"
    lines = [json.dumps(GOOD)] * 30
    lines[4] = json.dumps(GOOD | change)
    log.write_text("\n".join(lines) + "\n\n")
    assert len(read_page_views(log)) == 29
    assert f"log.jsonl line 5: {reason}" in caplog.text


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff\xfe", b"7", b"[" * 100_000])
def test_what_is_no_object_is_named(tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"\n".join([json.dumps(GOOD).encode()] * 30 + [line]))
    assert len(read_page_views(log)) == 30
    assert "log.jsonl line 31: not a JSON object" in caplog.text


def test_a_log_of_bad_lines_or_of_none_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("\n")
    with pytest.raises(ValueError, match="has no page views: it is empty"):
        read_page_views(log)
    log.write_text("nonsense\n" * 3)
    with pytest.raises(ValueError, match=r"3 of 3 records are bad.*line 1: not a JSON object"):
        read_page_views(log)
