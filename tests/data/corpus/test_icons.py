"""Matching icons to concepts, and the SVG documents made of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from openm6.data.corpus.concepts import Concept
from openm6.data.corpus.icon_names import EMOJIONE, FXEMOJI, NOTO_V1
from openm6.data.corpus.icons import IconSet, match_icons, names_by_chars, slug
from openm6.data.corpus.render import encode, nearly_equal, render

RED = '<path d="M0 0h8v16H0z" fill="red"/>'


def concept(char: str, name: str, label: str = "") -> Concept:
    code = "-".join(f"{ord(c):X}" for c in char)
    empty = {"en": "", "zh": ""}
    return Concept(code, char, label or name, {"en": name, "zh": ""}, {"en": [], "zh": []}, empty, empty)


def icon_set(
    name: str = "noto-v1",
    icons: tuple[str, ...] = (),
    aliases: dict[str, dict] | None = None,
    chars: dict[str, str] | None = None,
) -> IconSet:
    return IconSet(name, {icon: {"body": RED} for icon in icons}, aliases or {}, chars or {}, 16, 16)


CAT, CAT_FACE, FRANCE = concept("🐈", "cat"), concept("🐱", "cat face"), concept("🇫🇷", "flag: France")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cat Face", "cat-face"),
        ("woman’s hat", "womans-hat"),
        ("flag: St. Barthélemy", "flag-st-barthelemy"),
        ("flag: U.S. Outlying Islands", "flag-us-outlying-islands"),
        ("Trinidad & Tobago", "trinidad-and-tobago"),
    ],
)
def test_slugs(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_code_points_decide_where_a_set_lists_them() -> None:
    # The icon called "cat" is the cat face here: the code point knows better than the name.
    listed = icon_set("noto", ("cat", "kitty"), chars={"🐱": "cat", "🐈": "kitty"})
    assert match_icons(listed, [CAT, CAT_FACE], {}) == {"1F431": "cat", "1F408": "kitty"}


def test_names_match_slugs_labels_flags_and_names_of_other_sets() -> None:
    concepts = [CAT, concept("🎯", "bullseye", label="hit"), FRANCE, concept("🐕", "dog")]
    other = icon_set("noto", ("doggy",), chars={"🐕": "doggy"})
    icons = icon_set("emojione", ("cat", "hit", "flag-for-france", "doggy"))
    assert match_icons(icons, concepts, names_by_chars([other])) == {
        "1F408": "cat",
        "1F3AF": "hit",
        "1F1EB-1F1F7": "flag-for-france",
        "1F415": "doggy",
    }


def test_a_name_that_two_sets_give_to_different_emoji_is_no_evidence() -> None:
    sets = [icon_set("noto", chars={"🐈": "cat"}), icon_set("twemoji", chars={"🐱": "cat"})]
    assert names_by_chars(sets) == {}


def test_an_icon_serves_one_concept_and_a_concept_takes_one_icon() -> None:
    aliases = {"cat-face": {"parent": "cat"}}
    assert match_icons(icon_set(icons=("cat",), aliases=aliases), [CAT, CAT_FACE], {}) == {"1F408": "cat"}
    assert match_icons(icon_set(icons=("cat", "kitty")), [CAT], {"kitty": "🐈"}) == {"1F408": "cat"}


def test_a_new_name_of_an_old_icon_is_found_by_its_alias() -> None:
    aliases = {"cat": {"parent": "old-cat"}}
    assert match_icons(icon_set(icons=("old-cat",), aliases=aliases), [CAT], {}) == {"1F408": "old-cat"}


def test_firefox_names_are_unicode_names_run_together_unless_the_table_says_otherwise() -> None:
    pistol = concept("🔫", "water pistol")
    concepts = [concept("🍎", "red apple"), CAT, CAT_FACE, pistol]
    found = match_icons(icon_set("fxemoji", ("redapple", "cat", "catside", "pistol")), concepts, {})
    assert found == {"1F34E": "redapple", "1F431": "cat", "1F408": "catside"}


@pytest.mark.parametrize("table", [NOTO_V1, EMOJIONE, FXEMOJI])
def test_hand_tables_give_each_emoji_once_and_without_variation_selectors(table: dict[str, str]) -> None:
    assert len(set(table.values())) == len(table)
    assert not any("\ufe0f" in char for char in table.values())


def test_svg_is_square_and_centred() -> None:
    wide = IconSet("x", {"i": {"body": '<path d="M0 0h32v16H0z"/>', "width": 32}}, {}, {}, 16, 16)
    alpha = render(wide.svg("i"))[..., 3]
    assert alpha.shape == (64, 64)
    assert alpha[16:48].min() == 255 and alpha[:16].max() == 0 and alpha[48:].max() == 0


def test_a_mirrored_alias_is_drawn_mirrored() -> None:
    icons = icon_set(icons=("left",), aliases={"right": {"parent": "left", "hFlip": True}})
    left, right = render(icons.svg("left")), render(icons.svg("right"))
    assert left[:, :32, 3].min() == 255 and left[:, 32:, 3].max() == 0
    np.testing.assert_array_equal(right, left[:, ::-1])


def test_encoding_is_lossless_over_any_ground() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)
    rgba[..., 3] |= 1  # nothing fully transparent but the top
    rgba[:20, :, 3] = 0
    with Image.open(io.BytesIO(encode(rgba))) as image:
        decoded = np.array(image)
    np.testing.assert_array_equal(decoded[20:], rgba[20:])
    assert decoded[:20, :, 3].max() == 0


def test_nearly_equal_pictures() -> None:
    a = np.zeros((64, 64, 4), np.uint8)
    b = a.copy()
    b[..., 0] = 255  # invisible: alpha is zero
    assert nearly_equal(a, b)
    b[:8, :8, 3] = 255
    assert not nearly_equal(a, b)
