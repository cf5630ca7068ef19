"""Conditional requests (RFC 9110, 13): a client that already has the current answer does not get it again."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime


def is_known(headers: Mapping[str, str], tag: str, modified: int) -> bool:
    """Whether the request's headers name this `tag`, or (without tags) a date not before `modified` (seconds)."""
    tags = headers.get("if-none-match")
    if tags is not None:
        known = [each.strip().removeprefix("W/") for each in tags.split(",")]
        return "*" in known or f'"{tag}"' in known
    try:
        return parsedate_to_datetime(headers.get("if-modified-since", "")).timestamp() >= modified
    except (TypeError, ValueError, OverflowError):
        return False
