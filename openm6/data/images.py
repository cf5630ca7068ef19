"""Decodes pictures from untrusted sources.

`read_image` takes bytes or a path. It returns an array, or raises a `BadRecord` that names the fault. It tries only
the formats in `FORMATS`, because PIL also knows formats that start other programs (such as EPS). It checks the size
in the header before it decodes any pixel. It changes no setting of PIL for the rest of the process.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from openm6.data.bad import BadRecord

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)
# Suffixes of pictures that are not read; a folder names what it skips.
UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".svg", ".psd", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".raw"}
)
MAX_PIXELS = 2**26  # 8,192 x 8,192; at most 256 MiB once decoded
MAX_BYTES = 2**28  # of the encoded file
EXIF_ORIENTATION = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: bytes | str | Path,
    *,
    size: int | None = None,
    where: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes one picture to uint8 of shape (H, W, 4) if it has transparency, else (H, W, 3).

    With `size`, the picture is scaled to fit a `size` x `size` square with its aspect kept. It is centred on a
    canvas that is transparent (4 channels) or white (3 channels). The EXIF orientation is applied. Palette, grey,
    CMYK and 16-bit pictures become 8-bit RGB. An animation gives its first frame.

    `where` names the picture in errors (a path names itself). Raises `BadRecord`, a `ValueError`, for a file that
    is missing, not a regular file, empty, truncated, damaged, of an unknown format, or larger than `max_pixels`.
    """
    if size is not None and size < 1:
        raise ValueError(f"image size must be at least 1, not {size}.")
    where = where or (str(source) if not isinstance(source, bytes) else "image")
    data = source if isinstance(source, bytes) else read_encoded(Path(source), where)
    if not data:
        raise BadRecord(where, "the image is empty")
    if len(data) > MAX_BYTES:
        raise BadRecord(where, f"the image file is huge ({len(data):,} bytes; the limit is {MAX_BYTES:,})")
    try:
        return to_array(_decode(data, size, where, max_pixels), size=size)
    except BadRecord:
        raise
    except Image.DecompressionBombError as error:
        raise BadRecord(where, f"the image is huge ({error})") from error
    except UnidentifiedImageError as error:
        raise BadRecord(where, f"not an image in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # damaged files make PIL's plugins raise nearly every type there is
        raise BadRecord(where, f"truncated or damaged image ({error or type(error).__name__})") from error


def to_array(image: Image.Image, *, size: int | None = None) -> np.ndarray:
    """A loaded PIL image as uint8 (H, W, 4) or (H, W, 3), fitted to a square as by `read_image`."""
    image = _to_rgb(image)
    if size is not None:
        scale = size / max(image.size)
        fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if fitted != image.size:  # PIL premultiplies alpha while it resizes
            image = image.resize(fitted, Image.Resampling.BICUBIC)
        if fitted != (size, size):
            background = (255, 255, 255, 0) if image.mode == "RGBA" else (255, 255, 255)
            canvas = Image.new(image.mode, (size, size), background)
            canvas.paste(image, ((size - fitted[0]) // 2, (size - fitted[1]) // 2))
            image = canvas
    return np.array(image, dtype=np.uint8)


def read_encoded(path: Path, where: str) -> bytes:
    """The bytes of a picture file. Raises `BadRecord` if it is not a regular file, too large or not readable."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe would block for ever, a device would never end
            raise BadRecord(where, "not a regular file")
        if info.st_size > MAX_BYTES:
            raise BadRecord(
                where, f"the image file is huge ({info.st_size:,} bytes; the limit is {MAX_BYTES:,})"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadRecord(where, "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: BadRecord passes, and a NUL in the path
        if isinstance(error, BadRecord):
            raise
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise BadRecord(where, f"cannot be read ({reason})") from error


def _decode(data: bytes, size: int | None, where: str, max_pixels: int) -> Image.Image:
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    if image.width * image.height > max_pixels:
        raise BadRecord(
            where,
            f"the image is huge ({image.width:,} x {image.height:,} pixels; the limit is {max_pixels:,})",
        )
    if size is not None:
        image.draft(None, (2 * size, 2 * size))  # lets JPEG decode at a half, quarter or eighth of its size
    sixteen = any("16" in str(tile[3]) for tile in image.tile)
    image.load()
    clear: object = image.info.get("transparency")
    if sixteen and isinstance(
        clear, tuple
    ):  # PIL keeps the high bytes of 16-bit colours, but not of this one
        image.info["transparency"] = tuple(value >> 8 for value in cast("tuple[int, ...]", clear))
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TRANSPOSE.get(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels, which did decode
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "RGBA"):
        if image.mode == "RGB" and "transparency" in image.info:
            return image.convert("RGBA")
        return image
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no fixed scale")
    has_alpha = image.mode in ("LA", "La", "PA", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 0 .. 65535 as RGB, or as RGBA if one grey is transparent.

    The mode gives the scale, not the values, so a dark picture stays dark. PIL's own `convert` would clip
    everything above 255 to white.
    """
    grey = np.asarray(image).astype(np.int64)
    if grey.min(initial=0) < 0 or grey.max(initial=0) > 65_535:
        raise ValueError("32-bit whole numbers as pixels have no fixed scale")
    channels = [Image.fromarray((grey // 257).astype(np.uint8))] * 3
    clear: object = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.merge("RGB", channels)
    alpha = Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8))
    return Image.merge("RGBA", [*channels, alpha])
