"""A store on Milvus: a server or cluster (`http://host:19530`), or Milvus Lite in a file (`shop.db`).

One collection holds the items, another holds the `About`. The attributes are one JSON field, so a column may have
any name. Milvus Lite 3 has no binary vectors. There a code is a vector of +1 and -1, whose inner product is `bits -
2 Hamming`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from openm6.search.store import (
    About,
    DatabaseStore,
    Entries,
    Found,
    Unavailable,
    attributes_of,
    complaint,
    stack,
)
from openm6.search.values import MAX_ID, Attributes
from openm6.search.where import Condition, Kind, Value, Where

ITEMS, ABOUT = "openm6_items", "openm6_about"
IDS_AT_A_TIME = 1000
MOST = 16_384  # items in an answer: a server's limit


class MilvusStore(DatabaseStore):
    """A store on Milvus. Raises ValueError if `pymilvus` is not installed or the server does not answer."""

    def __init__(self, address: str) -> None:
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise ValueError("a Milvus index needs the extra search: pip install 'openm6[search]'") from error
        if address.endswith(".db") and importlib.util.find_spec("milvus_lite") is None:
            raise ValueError(f"the file {address} needs Milvus Lite: pip install milvus-lite")
        # It logs every error with its traceback; here, errors are raised.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self.address, self.binary, self.complaints = address, not address.endswith(".db"), (MilvusException,)
        try:
            self.client = MilvusClient(address)
            self._about = self._open()
        except MilvusException as error:
            raise Unavailable(f"the Milvus index {address} cannot be opened: {complaint(error)}") from error

    def _open(self) -> About | None:
        # Written last by `create`: without it, there is no index.
        if not self.client.has_collection(ABOUT):
            return None
        self.client.load_collection(ABOUT)
        self.client.load_collection(ITEMS)
        rows: Any = self.client.get(ABOUT, ids=["about"], output_fields=["about"])
        return About.model_validate(rows[0]["about"]) if rows else None

    @property
    def about(self) -> About | None:
        return self._about

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Excludes no other process. Two processes may write at once: each writes whole
        items, and no item twice.
        """
        yield

    def create(self, about: About) -> None:
        types = _types()
        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=MAX_ID)
        schema.add_field("item_hash", types.VARCHAR, max_length=64)
        schema.add_field("item_vector", types.FLOAT_VECTOR, dim=about.dim)
        code_type = types.BINARY_VECTOR if self.binary else types.FLOAT_VECTOR
        schema.add_field("item_code", code_type, dim=about.bits)
        schema.add_field("attributes", types.JSON)
        indices = self.client.prepare_index_params()
        indices.add_index("item_vector", index_type="FLAT", metric_type="IP")
        if self.binary:
            indices.add_index("item_code", index_type="BIN_FLAT", metric_type="HAMMING")
        else:
            indices.add_index("item_code", index_type="FLAT", metric_type="IP")
        self._create(ITEMS, schema, indices)
        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=MAX_ID)
        schema.add_field("none", types.FLOAT_VECTOR, dim=2)  # a collection must have a vector
        schema.add_field("about", types.JSON)
        indices = self.client.prepare_index_params()
        indices.add_index("none", index_type="FLAT", metric_type="IP")
        self._create(ABOUT, schema, indices)
        self.client.insert(
            ABOUT, [{"id": "about", "none": [0.0, 0.0], "about": about.model_dump(mode="json")}]
        )
        self._about = about

    def _create(self, name: str, schema: Any, indices: Any) -> None:
        if self.client.has_collection(name):  # left by a `create` that was stopped
            self.client.drop_collection(name)
        # Strong: what this process has written, its next search finds.
        self.client.create_collection(name, schema=schema, index_params=indices, consistency_level="Strong")

    def hashes(self) -> dict[str, str]:
        return {row["id"]: row["item_hash"] for page in self._pages(["id", "item_hash"]) for row in page}

    def write(self, entries: Entries, *, known: bool) -> None:
        codes = list(map(self._code, entries.codes_NW))
        # A missing value is a missing key, which `exists` finds.
        given = [
            {name: value for name, value in row.items() if value is not None} for row in entries.attributes
        ]
        rows = zip(entries.ids, entries.hashes, entries.vectors_ND, codes, given, strict=True)
        names = ("id", "item_hash", "item_vector", "item_code", "attributes")
        data = [dict(zip(names, row, strict=True)) for row in rows]
        self.client.upsert(ITEMS, data)  # Milvus would insert an id twice

    def delete(self, ids: Sequence[str]) -> None:
        for chosen in _chosen(ids):
            self.client.delete(ITEMS, filter=chosen)

    def settle(self) -> None:
        self.client.flush(ITEMS)

    def count(self, where: Where | None = None) -> int:
        rows: Any = self.client.query(ITEMS, filter=self._filter(where), output_fields=["count(*)"])
        return rows[0]["count(*)"]

    def nearest(self, query_D: np.ndarray, n: int, where: Where | None = None) -> Found:
        return self._search("item_vector", query_D.astype(np.float32), n, where, metric="IP")

    def coarse(self, code_W: np.ndarray, n: int, where: Where | None = None) -> Found:
        assert self._about is not None
        metric = "HAMMING" if self.binary else "IP"
        found = self._search("item_code", self._code(code_W), n, where, metric=metric)
        if self.binary:
            return found
        return replace(found, distances_N=(self._about.bits - found.distances_N) / 2)

    def rows(self, ids: Sequence[str], where: Where | None = None) -> dict[str, Attributes]:
        columns = self._columns
        return {
            row["id"]: attributes_of(row["attributes"], columns) for row in self._of(ids, "attributes", where)
        }

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        rows = self._of(ids, "item_vector")
        return {row["id"]: np.array(row["item_vector"], np.float32) for row in rows}

    def scan(self, columns: Sequence[str], where: Where | None = None) -> Iterator[dict[str, Attributes]]:
        kinds: dict[str, Kind] = {name: self._columns[name] for name in columns}
        for page in self._pages(["id", *(["attributes"] if columns else [])], where):
            yield {row["id"]: attributes_of(row.get("attributes", {}), kinds) for row in page}

    def _pages(self, fields: list[str], where: Where | None = None) -> Iterator[list[dict[str, Any]]]:
        pages = self.client.query_iterator(
            ITEMS, batch_size=IDS_AT_A_TIME, filter=self._filter(where), output_fields=fields
        )
        while page := pages.next():
            yield page
        pages.close()

    def _of(self, ids: Sequence[str], field: str, where: Where | None = None) -> Iterator[dict[str, Any]]:
        for chosen in _chosen(ids):
            both = f"{chosen} and {self._filter(where)}" if where is not None else chosen
            rows: Any = self.client.query(ITEMS, filter=both, output_fields=["id", field])
            yield from rows

    @property
    def _columns(self) -> dict[str, Kind]:
        assert self._about is not None, "the index has not been created"
        return self._about.columns

    def _filter(self, where: Where | None) -> str:
        return "" if where is None else to_expression(where, escapes=self.binary)

    def _code(self, code_W: np.ndarray) -> Any:
        return code_W.tobytes() if self.binary else np.unpackbits(code_W).astype(np.float32) * 2 - 1

    def _search(self, field: str, query: Any, n: int, where: Where | None, *, metric: str) -> Found:
        assert self._about is not None
        [hits] = self.client.search(
            ITEMS,
            data=[query],
            anns_field=field,
            limit=min(n, MOST),
            filter=self._filter(where),
            output_fields=["item_vector", "attributes"],
            search_params={"metric_type": metric},
        )
        vectors = [hit["entity"]["item_vector"] for hit in hits]
        distances = np.array([hit["distance"] for hit in hits])
        columns = self._columns
        rows = [attributes_of(hit["entity"]["attributes"], columns) for hit in hits]
        return Found([hit["id"] for hit in hits], stack(vectors, self._about.dim), distances, rows)


def to_expression(where: Where, *, escapes: bool = False) -> str:
    """A filter in Milvus's notation. A negated condition requires that the attribute exists, as in SQL.

    `escapes`: a backslash in a pattern escapes the next character, as on a server. Milvus Lite takes it literally.
    """
    if not isinstance(where, Condition):
        parts = [to_expression(part, escapes=escapes) for part in where.parts]
        return "(" + f" {where.word} ".join(parts) + ")"
    field, sign, value = f"attributes[{_literal(where.column)}]", where.sign, where.value
    if escapes and sign in ("like", "not like") and isinstance(value, str):
        value = value.replace("\\", "\\\\")
    if value is None:
        return f"{'not ' if sign == 'is null' else ''}(exists {field})"
    if isinstance(value, tuple):  # Milvus Lite has no `in` for what is inside JSON
        some = "(" + " or ".join(f"{field} == {_literal(each)}" for each in value) + ")"
        return some if sign == "in" else f"(exists {field} and not {some})"
    if sign == "not like":
        return f"(exists {field} and not ({field} like {_literal(value)}))"
    if sign == "!=":
        return f"(exists {field} and {field} != {_literal(value)})"
    return f"{field} {'==' if sign == '=' else sign} {_literal(value)}"


def _chosen(ids: Sequence[str]) -> Iterator[str]:
    """Filters that choose items by id, with some of the ids each. They quote the ids, because Milvus itself would
    not.
    """
    for start in range(0, len(ids), IDS_AT_A_TIME):
        yield f"id in [{', '.join(map(_literal, ids[start : start + IDS_AT_A_TIME]))}]"


def _literal(value: Value) -> str:
    """A value in Milvus's notation. Of JSON's escapes, Milvus Lite knows only these five."""
    if not isinstance(value, str):
        return json.dumps(value)
    for char, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        value = value.replace(char, escape)
    return f'"{value}"'


def _types() -> Any:
    from pymilvus import DataType

    return DataType
