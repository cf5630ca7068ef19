"""The emoji concepts: their names in English and Chinese, and their groups.

Sources: emojibase-data (the list of emoji, groups, subgroups) and the CLDR annotation packages (names, keywords).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .groups import GROUPS_ZH, SUBGROUPS_ZH

COMPONENT_GROUP = 2  # skin-tone swatches and hair: parts of other emoji, not pictures of something
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Concept:
    """One emoji: `hexcode` names it everywhere; pairs and dicts are keyed by language (en, zh)."""

    hexcode: str
    char: str
    label: str  # emojibase's English label, a second name to match icons by
    name: dict[str, str]
    keywords: dict[str, list[str]]
    group: dict[str, str]
    subgroup: dict[str, str]


def bare(char: str) -> str:
    """`char` without variation selectors: the form in which CLDR and icon sets list an emoji."""
    return char.replace("\ufe0f", "")


def read_json(path: Path) -> Any:
    """Parsed JSON of `path`; raises ValueError when the file is missing."""
    if not path.is_file():
        raise ValueError(
            f"corpus build: {path} is missing; install the npm packages listed in docs/data-card.md."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def read_concepts(node_modules: Path) -> list[Concept]:
    """All concepts with a CLDR name in both languages, in emojibase's order."""
    annotations = {language: _annotations(node_modules, language) for language in LANGUAGES}
    groups, subgroups = _messages(node_modules, "groups"), _messages(node_modules, "subgroups")
    concepts: list[Concept] = []
    for entry in read_json(node_modules / "emojibase-data/en/data.json"):
        char = bare(entry["emoji"])
        if entry.get("group") in (None, COMPONENT_GROUP) or any(
            char not in annotations[k] for k in LANGUAGES
        ):
            continue
        name = {k: annotations[k][char]["tts"][0] for k in LANGUAGES}
        concepts.append(
            Concept(
                hexcode=entry["hexcode"],
                char=entry["emoji"],
                label=entry["label"],
                name=name,
                keywords={k: _keywords(annotations[k][char], name[k]) for k in LANGUAGES},
                group=groups[entry["group"]],
                subgroup=subgroups[entry["subgroup"]],
            )
        )
    return concepts


def _annotations(node_modules: Path, language: str) -> dict[str, dict[str, list[str]]]:
    base = read_json(node_modules / f"cldr-annotations-full/annotations/{language}/annotations.json")
    derived = read_json(
        node_modules / f"cldr-annotations-derived-full/annotationsDerived/{language}/annotations.json"
    )
    merged = derived["annotationsDerived"]["annotations"] | base["annotations"]["annotations"]
    return {bare(char): entry for char, entry in merged.items() if entry.get("tts")}


def _keywords(entry: dict[str, list[str]], name: str) -> list[str]:
    return [word for word in entry.get("default", []) if word.casefold() != name.casefold()]


def _messages(node_modules: Path, kind: str) -> dict[int, dict[str, str]]:
    """emojibase's number -> {en, zh} of `kind` (groups or subgroups)."""
    english = {
        m["key"]: m["message"] for m in read_json(node_modules / "emojibase-data/en/messages.json")[kind]
    }
    chinese = GROUPS_ZH if kind == "groups" else SUBGROUPS_ZH
    keys = read_json(node_modules / "emojibase-data/meta/groups.json")[kind]
    return {int(n): {"en": english[key], "zh": chinese[key]} for n, key in keys.items() if key in chinese}
