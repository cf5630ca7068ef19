"""Opens encoders by name and stores by address. Only this file knows every kind of both."""

from __future__ import annotations

from pathlib import Path

from openm6.search.encoders import Encoder, M6Encoder, PhotoEncoder
from openm6.search.store import Store


def open_encoder(name: str, *, device: str = "auto") -> Encoder:
    """The encoder of a name (see `openm6/search/encoders.py`). It computes on `device`.

    Raises ValueError if there is none, and for a device that this machine does not have.
    """
    if name == "photo":
        return PhotoEncoder(device=device)
    if name == "m6" or name.startswith("m6:"):
        return M6Encoder(name.removeprefix("m6").removeprefix(":") or None, device=device)
    if Path(name).is_dir():
        from openm6.search.learned.encoder import LearnedEncoder

        return LearnedEncoder(name, device=device)
    raise ValueError(
        f"there is no encoder {name!r}: choose m6, m6:FOLDER, photo, or a folder of openm6 search train."
    )


def open_store(address: str) -> Store:
    """The store at an address. `http://host:19530` or a file `*.db` is Milvus; anything else is a folder of
    LanceDB.

    Raises ValueError if the address is empty, if it cannot be reached, or if its package is not installed.
    """
    if not address.strip():
        raise ValueError(
            "the address of an index is empty: name a folder, or a Milvus server as http://host:19530"
        )
    if address.startswith(("http://", "https://", "tcp://")) or address.endswith(".db"):
        from openm6.search.milvus import MilvusStore

        return MilvusStore(address)
    from openm6.search.lance import LanceStore

    return LanceStore(address)
