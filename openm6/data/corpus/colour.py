"""The main colour of a picture, as a person would name it: one of eleven words, by a fixed rule.

1. Each pixel of at least half opacity gets a colour name from its hue h (degrees), saturation s, value v and chroma
   c = s * v. Nearly colourless pixels are black, white or grey, dark orange is brown, light red is pink, and so on
   (`name_pixels`).
2. If at least 30 % of these pixels have a hue, the commonest hue wins. Otherwise the commonest of black, white and
   grey wins. So a red apple with a black outline is red, and a panda with pink ears is white.
"""

from __future__ import annotations

import numpy as np

COLOURS_EN = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
COLOURS_ZH: dict[str, str] = dict(
    zip(
        COLOURS_EN,
        ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "粉色", "棕色", "黑色", "白色", "灰色"),
        strict=True,
    )
)
CHROMATIC_SHARE = 0.30
_RED, _ORANGE, _YELLOW, _GREEN, _BLUE, _PURPLE, _PINK, _BROWN, _BLACK, _WHITE, _GREY = range(len(COLOURS_EN))


def name_pixels(rgb: np.ndarray) -> np.ndarray:
    """Index into `COLOURS_EN` for each pixel of np.uint8 `rgb` (..., 3)."""
    x = rgb.astype(np.float32) / 255.0
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    v, low = x.max(-1), x.min(-1)
    c = v - low
    safe = np.where(c > 0, c, 1.0)
    h = np.where(v == r, ((g - b) / safe) % 6, np.where(v == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60
    s = c / np.where(v > 0, v, 1.0)

    # Hue circle, starting at pure red; the last entry closes the circle.
    hue = np.select(
        [h < 13, h < 36.5, h < 66, h < 176, h < 248, h < 296, h < 344],
        [_RED, _ORANGE, _YELLOW, _GREEN, _BLUE, _PURPLE, _PINK],
        default=_RED,
    )
    warm = (h < 48) | (h >= 344)
    hue = np.where((h >= 296) & (h < 330) & (v < 0.70), _PURPLE, hue)
    hue = np.where((hue == _RED) & (v > 0.75) & (s < 0.63) & ((h >= 344) | (h < 8)), _PINK, hue)
    # Dark or dull orange is brown: wood, fur, hair. Dull reds (h < 13) count too once they are not vivid.
    dull_orange = (h >= 13) & (h < 40) & ((v < 0.80) | ((s < 0.55) & (v < 0.97)))
    dull_red = ((h < 13) | (h >= 350)) & (((s < 0.62) & (v < 0.78)) | ((v < 0.48) & (h >= 5) & (h < 13)))
    dull_yellow = (h >= 36) & (h < 50) & (v < np.where(h < 44, 0.85, 0.66))
    hue = np.where(dull_orange | dull_red | dull_yellow, _BROWN, hue)

    # Slate and steel blues read as grey: darker cool hues need more chroma than others to count as a colour.
    cool = (h >= 180) & (h < 260) & (v < 0.85)
    weak = np.where(warm, 0.10, np.where(cool, 0.21, 0.12))
    colourless = (c < weak) | (v < 0.16)
    shade = np.where(v >= 0.81, _WHITE, np.where(v < 0.40, _BLACK, _GREY))
    return np.where(colourless, shade, hue)


def main_colour(rgba: np.ndarray) -> str:
    """The English colour word (one of `COLOURS_EN`) of np.uint8 `rgba` (H, W, 4) by the rule above.

    Raises ValueError if no pixel is at least half opaque.
    """
    visible = rgba[rgba[..., 3] >= 128][:, :3]
    if len(visible) == 0:
        raise ValueError(
            "main_colour: the picture has no pixel of at least half opacity; pass a visible one."
        )
    counts = np.bincount(name_pixels(visible), minlength=len(COLOURS_EN))
    hues = counts[:_BLACK]
    if hues.sum() >= CHROMATIC_SHARE * len(visible):
        return COLOURS_EN[int(hues.argmax())]
    return COLOURS_EN[_BLACK + int(counts[_BLACK:].argmax())]
