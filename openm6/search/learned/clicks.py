"""The log of clicks: for each page view, the picture of the query, the shown items and the clicked items.

The log is a JSON Lines file in UTF-8, one page view per line:

    {"query": "queries/17.jpg", "shown": ["a1", "b7", "c2"], "clicked": ["b7"], "user": "u5"}

    query     the customer's picture, a path relative to the folder of the log
    shown     ids of the catalogue's items, in the order in which the page showed them; each once
    clicked   the clicked items among these, in the order of the clicks; may be empty
    user      the customer, optional: clicks of one user connect items (`virtual_id.py`)

Any other key is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from openm6.data.bad import BadCount, BadRecord

MAX_BAD_FRACTION = 0.05


@dataclass(frozen=True)
class PageView:
    """One line of the log. `query` is a path that can be opened."""

    query: Path
    shown: tuple[str, ...]
    clicked: tuple[str, ...]
    user: str | None = None


def read_page_views(path: str | Path, *, max_bad_fraction: float = MAX_BAD_FRACTION) -> list[PageView]:
    """Every page view of a log. A bad line is skipped and named in a warning.

    Raises ValueError if the file has no page view, or too many bad lines.
    """
    path, bad, views = Path(path), BadCount(), list[PageView]()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            bad.epoch_seen += 1
            try:
                views.append(_page_view(line, path, f"{path.name} line {number}"))
            except BadRecord as error:
                bad.add(error, source=str(path))
    if not bad.epoch_seen:
        raise ValueError(f"{path} has no page views: it is empty.")
    bad.end_epoch(max_fraction=max_bad_fraction, source=str(path))
    return views


def write_page_views(path: Path, views: Iterable[PageView]) -> None:
    """Writes a log. The pictures of the queries lie in its folder or below."""
    with path.open("w", encoding="utf-8") as file:
        for view in views:
            line = {
                "query": view.query.relative_to(path.parent).as_posix(),
                "shown": list(view.shown),
                "clicked": list(view.clicked),
            }
            file.write(json.dumps(line | ({} if view.user is None else {"user": view.user})) + "\n")


def _page_view(line: bytes, path: Path, where: str) -> PageView:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRecord(where, "not a JSON object") from None
    if not isinstance(content, dict):
        raise BadRecord(where, "not a JSON object")
    query, user = content.get("query"), content.get("user")
    if not isinstance(query, str) or not query or "\0" in query:
        raise BadRecord(where, "'query' must be the path of a picture")
    if user is not None and not isinstance(user, str):
        raise BadRecord(where, "'user' must be a text")
    shown, clicked = (_ids(content.get(key), key, where) for key in ("shown", "clicked"))
    if not shown:
        raise BadRecord(where, "'shown' is empty")
    if strange := set(clicked) - set(shown):
        raise BadRecord(where, f"{min(strange)!r} was clicked and not shown")
    return PageView(path.parent / query, shown, clicked, user)


def _ids(value: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise BadRecord(where, f"'{key}' must be a list of ids, which are texts")
    if len(set(value)) < len(value):
        raise BadRecord(where, f"'{key}' has an id twice")
    return tuple(value)
