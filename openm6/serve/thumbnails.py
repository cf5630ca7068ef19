"""Small pictures of items, made from the files of a catalogue and kept in memory.

If a file changes, its small picture is made again.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from openm6.data import BadRecord
from openm6.data.images import read_image

THUMBNAIL = 384  # pixels a side: sharp at the width of an item's picture on a screen with two pixels for one
KEPT = 512  # in memory, of about 40 KB each


@dataclass(frozen=True)
class Thumbnail:
    """A picture as PNG. `tag` names its content; `modified` is the time when its file changed, in seconds since
    1970.
    """

    png: bytes
    tag: str
    modified: int


class Thumbnails:
    """Small pictures of the files below a folder; none without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder.resolve() if folder is not None else None
        self._kept = lru_cache(KEPT)(_thumbnail)

    def of(self, source: str) -> Thumbnail | None:
        """The picture that a catalogue calls `source`; None if it is not in the folder, or cannot be read."""
        if self.folder is None:
            return None
        try:
            path = (self.folder / source).resolve()
            if not path.is_relative_to(self.folder):
                return None
            state = path.stat()
            return self._kept(path, state.st_mtime_ns, state.st_size, state.st_ino)
        except (BadRecord, OSError, ValueError):
            return None


def _thumbnail(path: Path, mtime_ns: int, size: int, inode: int) -> Thumbnail:
    file = io.BytesIO()
    Image.fromarray(read_image(path, size=THUMBNAIL)).save(file, "PNG", compress_level=3)
    tag = hashlib.blake2s(file.getvalue(), digest_size=12).hexdigest()
    return Thumbnail(file.getvalue(), tag, mtime_ns // 10**9)
