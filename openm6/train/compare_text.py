"""Words and numbers of a comparison, for the terminal and for the page."""

from __future__ import annotations

import json
from typing import Any

from openm6.train.compare import Losses


def setting(value: Any) -> str:
    """A setting's value in the notation of a recipe; "-" for a run without it."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def at_words(losses: Losses) -> str:
    """The point at which the losses were read, such as "1,204,331 tokens"."""
    return f"{losses.at:,.0f} {'tokens' if losses.axis == 'tokens' else 'seconds'}"


def amount(figure: str, value: float | None) -> str:
    """A figure of `openm6.train.compare.figures` in the unit of its name, with bytes in MiB or GiB."""
    if value is None:
        return "-"
    if "bytes" in figure:
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
    return f"{value:,.1f}" if figure == "seconds" and value < 100 else f"{value:,.0f}"
