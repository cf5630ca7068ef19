"""The catalogue that comes with the service: some hundred emoji of the embedded corpus, listed like a shop's items.

Its prices are invented, from a hash of the item's name, so that filters have a number to work on.
"""

from __future__ import annotations

import csv
import hashlib
import os
import tempfile
from pathlib import Path

from openm6.data.atomic import replacing
from openm6.data.corpus import load_emoji
from openm6.search.encoders import M6Encoder
from openm6.serve.shop import Shop

GROUPS = ("food & drink", "animals & nature", "objects", "activities")  # things that a shop may sell
SET = "twemoji"
COLUMNS = ("id", "image", "name", "name_zh", "category", "category_zh", "colour", "colour_zh", "price")
NOTE = "The items are emoji of the embedded corpus; their prices are made up."
VERSION = "1"  # of the files; another version gets a folder of its own


def embedded_shop(*, device: str = "auto") -> Shop:
    """The catalogue, indexed by the shipped model on `device`; another model gets an index of its own."""
    encoder, folder = M6Encoder(device=device), cache_folder()
    return Shop(
        str(folder / f"index-{encoder.fingerprint}"),
        pictures=folder,
        catalogue=write_catalogue(folder),
        encoder=encoder,
        note=NOTE,
        yuan=True,
    )


def cache_folder() -> Path:
    """The folder of the catalogue and its index: in the user's cache, or else a folder for temporary files."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "openm6" / f"catalogue-{VERSION}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="openm6-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="openm6-"))


def write_catalogue(folder: Path, *, limit: int | None = None) -> Path:
    """Write `catalogue.csv` and its pictures below `folder`, unless they exist. Returns the CSV file.

    `limit`: take only this many items, evenly spread.
    """
    path, pictures = folder / "catalogue.csv", folder / "pictures"
    if path.is_file():
        return path
    pictures.mkdir(parents=True, exist_ok=True)
    rows = [row for row in load_emoji().to_pylist() if row["set"] == SET and row["group_en"] in GROUPS]
    rows = rows[:: max(1, len(rows) // limit)][:limit] if limit else rows
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            name = f"{row['concept']}.webp"
            (pictures / name).write_bytes(row["image"])
            writer.writerow(
                (
                    row["concept"],
                    f"pictures/{name}",
                    row["name_en"],
                    row["name_zh"],
                    row["group_en"],
                    row["group_zh"],
                    row["colour_en"],
                    row["colour_zh"],
                    price(row["name_en"]),
                )
            )
    return path


def price(name: str) -> int:
    """A price from 5 to 499, the same for the same name."""
    return 5 + int.from_bytes(hashlib.blake2s(name.encode(), digest_size=4).digest()) % 495
