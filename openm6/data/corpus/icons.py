"""Matches the icons of a picture set to concepts.

An iconify package names its icons by slugs, and some packages also map code points to icons (chars.json). The
strongest evidence is tried first, and no icon or concept is matched twice. In doubt an icon is left out: a missing
picture costs little, but a wrong one teaches a wrong name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .concepts import Concept, bare, read_json
from .icon_names import EMOJIONE, FXEMOJI, NOTO_V1, REJECTED

FAMILIES = {
    "noto": "noto",
    "noto-v1": "noto",
    "twemoji": "twemoji",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "fluent",
    "fluent-emoji-high-contrast": "fluent",
    "emojione": "emojione",
    "fxemoji": "fxemoji",
}
# fluent-emoji lists no code points, but draws the same names as its flat twin.
CHARS_FROM = {"fluent-emoji": "fluent-emoji-flat"}
HAND_NAMES = {"noto-v1": NOTO_V1, "emojione": EMOJIONE, "fxemoji": FXEMOJI}


@dataclass(frozen=True)
class IconSet:
    """One iconify package: `icons` and `aliases` as in icons.json, `chars`: bare emoji -> icon name."""

    name: str
    icons: dict[str, dict[str, Any]]
    aliases: dict[str, dict[str, Any]]
    chars: dict[str, str]
    width: float
    height: float

    def svg(self, name: str) -> str:
        """A square SVG document of the icon or alias `name`: aspect ratio kept, picture centred."""
        icon, flip = self.icons.get(name), False
        if icon is None:
            alias = self.aliases[name]
            icon, flip = self.icons[alias["parent"]], bool(alias.get("hFlip"))
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        side = max(width, height)
        box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
        mirror = f' transform="translate({2 * left + width:g} 0) scale(-1 1)"' if flip else ""
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="64" height="64"><g{mirror}>{icon["body"]}</g></svg>'
        )


def read_icon_set(node_modules: Path, name: str) -> IconSet:
    """Read the package `@iconify-json/<name>`."""
    folder = node_modules / "@iconify-json"
    data = read_json(folder / name / "icons.json")
    chars = read_json(folder / CHARS_FROM.get(name, name) / "chars.json")
    return IconSet(
        name=name,
        icons=data["icons"],
        aliases=data.get("aliases", {}),
        chars={bare(_from_hex(code)): icon for code, icon in chars.items()},
        width=data.get("width", 16),
        height=data.get("height", 16),
    )


def slug(text: str) -> str:
    """`text` in the form of iconify's icon names: ASCII words in lower case, joined by hyphens."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("&", "and")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", re.sub("['.]", "", plain)).strip("-")


def match_icons(icon_set: IconSet, concepts: list[Concept], names: dict[str, str]) -> dict[str, str]:
    """hexcode -> icon or alias name in `icon_set`.

    `names` maps slugs to bare emoji, collected from the sets that do list code points (`names_by_chars`).
    """
    by_char = {bare(concept.char): concept.hexcode for concept in concepts}
    rejected = REJECTED.get(icon_set.name, frozenset())
    matched: dict[str, str] = {}
    used: set[str] = set()
    for icon, char in _evidence(icon_set, concepts, names):
        hexcode = by_char.get(char)
        # Two concepts may share a drawing only through a mirrored alias, which is a picture of its own.
        if hexcode is None or hexcode in matched or icon in used or icon in rejected:
            continue
        matched[hexcode] = icon
        used.add(icon)
    return matched


def names_by_chars(icon_sets: list[IconSet]) -> dict[str, str]:
    """slug -> bare emoji, for the names on which the code-point tables of all `icon_sets` agree."""
    meanings: dict[str, set[str]] = {}
    for icon_set in icon_sets:
        for char, name in icon_set.chars.items():
            meanings.setdefault(name, set()).add(char)
    return {name: next(iter(chars)) for name, chars in meanings.items() if len(chars) == 1}


def _evidence(icon_set: IconSet, concepts: list[Concept], names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(icon, bare emoji) pairs, the most trustworthy first."""
    has = icon_set.icons.keys() | {name for name, alias in icon_set.aliases.items() if alias.get("hFlip")}
    for char, icon in icon_set.chars.items():
        if icon in has:
            yield icon, char
        elif icon in icon_set.aliases:
            yield icon_set.aliases[icon]["parent"], char
    if icon_set.chars:
        return
    for icon, char in HAND_NAMES.get(icon_set.name, {}).items():
        if icon in has:
            yield icon, char
    if icon_set.name == "fxemoji":
        # Its names are Unicode character names run together.
        single = [bare(concept.char) for concept in concepts if len(bare(concept.char)) == 1]
        unicode_names = {re.sub("[^a-z0-9]", "", unicodedata.name(char, "").lower()): char for char in single}
        for icon in icon_set.icons:
            if (char := unicode_names.get(icon.replace("-", ""))) is not None:
                yield icon, char
        return
    for concept in concepts:
        name = concept.name["en"]
        for text in (
            name,
            concept.label,
            name.replace("flag: ", "flag for "),
            name.replace("flag: ", "flag for flag "),
        ):
            if (icon := slug(text)) in has:
                yield icon, bare(concept.char)
    for name, char in names.items():
        if name in has:
            yield name, char
    # A name that only survives as an alias: an older or newer wording for the same drawing.
    for concept in concepts:
        alias = icon_set.aliases.get(slug(concept.name["en"]))
        if alias is not None and not alias.get("hFlip"):
            yield alias["parent"], bare(concept.char)


def _from_hex(code: str) -> str:
    return "".join(chr(int(part, 16)) for part in code.split("-"))
