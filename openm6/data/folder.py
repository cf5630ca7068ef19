"""A folder of pictures, with one subfolder for each class."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from openm6.data.files import skipped_pictures, walk
from openm6.data.images import IMAGE_SUFFIXES
from openm6.data.reader import Indexed, fingerprint
from openm6.data.records import Fields, Record

log = logging.getLogger(__name__)


class FolderReader(Indexed):
    """Reads a folder of pictures, in the order of their paths.

    Columns: `image`; `label`, the name of the first folder below `root`; `caption_en`, the same with spaces for
    `_`. Pictures in `root` itself have only `image`.
    """

    def __init__(self, root: Path, fields: Fields) -> None:
        if not root.is_dir():
            raise ValueError(f"there is no folder at {root}.")
        self.name, self.root, self.fields = str(root), root, fields
        self.paths = [path.relative_to(root).as_posix() for path in walk(root, IMAGE_SUFFIXES)]
        skipped = skipped_pictures(root)
        if not self.paths:
            why = f"; it has {skipped}, which are not read: convert them to PNG or JPEG" if skipped else ""
            raise ValueError(f"the folder {root} has no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}){why}.")
        if skipped:
            log.warning("%s: skips %s, which are not read: convert them to PNG or JPEG", root, skipped)
        self.columns = ("image", "label", "caption_en")
        fields.check(self.columns, where=self.name)
        self.fingerprint = fingerprint(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Record:
        path = self.paths[index]
        row: dict[str, Any] = {"image": path}
        label, separator, _ = path.partition("/")
        if separator:
            row |= {"label": label, "caption_en": label.replace("_", " ")}
        return self.fields.record(row, where=path, folder=self.root)
