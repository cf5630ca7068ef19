"""The same store on Milvus: a server or cluster (`http://host:19530`), or Milvus Lite in a file (`shop.db`).

A collection of items, and one that holds the `About`. The attributes are one JSON field, so that a column may have
any name. Milvus Lite 3 knows no binary vectors: there, a code is stored as a vector of +1 and -1, whose inner
product is `bits - 2 Hamming`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from openm6.search.catalogue import MAX_ID, Attributes
from openm6.search.store import About, DatabaseStore, Entries, Found, attributes_of, complaint, stack
from openm6.search.where import Condition, Value, Where

ITEMS, ABOUT = "openm6_items", "openm6_about"
IDS_AT_A_TIME = 1000
MOST = 16_384  # items in an answer: a server's limit


class MilvusStore(DatabaseStore):
    """Raises ValueError if `pymilvus` is not installed or the server does not answer."""

    def __init__(self, address: str) -> None:
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise ValueError("a Milvus index needs the extra search: pip install 'openm6[search]'") from error
        if address.endswith(".db") and importlib.util.find_spec("milvus_lite") is None:
            raise ValueError(f"the file {address} needs Milvus Lite: pip install milvus-lite")
        self.address, self.binary, self.complaints = address, not address.endswith(".db"), (MilvusException,)
        try:
            self.client = MilvusClient(address)
            self._about = self._open()
        except MilvusException as error:
            raise ValueError(f"the Milvus index {address} cannot be opened: {complaint(error)}") from error

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
        """Nobody is kept out: what two processes write, each writes whole, and no item twice."""
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
        pages = self.client.query_iterator(ITEMS, batch_size=IDS_AT_A_TIME, output_fields=["id", "item_hash"])
        found: dict[str, str] = {}
        while page := pages.next():
            found |= {row["id"]: row["item_hash"] for row in page}
        pages.close()
        return found

    def write(self, entries: Entries, *, known: bool) -> None:
        codes = list(map(self._code, entries.codes_NW))
        # A missing value is a missing key, which `exists` tells.
        told = [
            {name: value for name, value in row.items() if value is not None} for row in entries.attributes
        ]
        rows = zip(entries.ids, entries.hashes, entries.vectors_ND, codes, told, strict=True)
        names = ("id", "item_hash", "item_vector", "item_code", "attributes")
        data = [dict(zip(names, row, strict=True)) for row in rows]
        self.client.upsert(ITEMS, data)  # Milvus would insert an id twice

    def delete(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), IDS_AT_A_TIME):
            self.client.delete(ITEMS, ids=list(ids[start : start + IDS_AT_A_TIME]))

    def settle(self) -> None:
        self.client.flush(ITEMS)

    def count(self, where: Where | None = None) -> int:
        rows: Any = self.client.query(ITEMS, filter=_filter(where), output_fields=["count(*)"])
        return rows[0]["count(*)"]

    def nearest(self, query_D: np.ndarray, n: int, where: Where | None = None) -> Found:
        return self._search("item_vector", query_D.astype(np.float32), n, where, metric="IP")

    def coarse(self, code_W: np.ndarray, n: int, where: Where | None = None) -> Found:
        assert self._about is not None
        metric = "HAMMING" if self.binary else "IP"
        found = self._search("item_code", self._code(code_W), n, where, metric=metric)
        if self.binary:
            return found
        return Found(found.ids, found.vectors_ND, (self._about.bits - found.distances_N) / 2)

    def rows(self, ids: Sequence[str]) -> dict[str, Attributes]:
        assert self._about is not None
        columns = self._about.columns
        return {row["id"]: attributes_of(row["attributes"], columns) for row in self._of(ids, "attributes")}

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        rows = self._of(ids, "item_vector")
        return {row["id"]: np.array(row["item_vector"], np.float32) for row in rows}

    def _of(self, ids: Sequence[str], field: str) -> Iterator[dict[str, Any]]:
        for start in range(0, len(ids), IDS_AT_A_TIME):
            part: Any = list(ids[start : start + IDS_AT_A_TIME])
            yield from self.client.get(ITEMS, ids=part, output_fields=["id", field])

    def _code(self, code_W: np.ndarray) -> Any:
        return code_W.tobytes() if self.binary else np.unpackbits(code_W).astype(np.float32) * 2 - 1

    def _search(self, field: str, query: Any, n: int, where: Where | None, *, metric: str) -> Found:
        assert self._about is not None
        [hits] = self.client.search(
            ITEMS,
            data=[query],
            anns_field=field,
            limit=min(n, MOST),
            filter=_filter(where),
            output_fields=["item_vector"],
            search_params={"metric_type": metric},
        )
        vectors = [hit["entity"]["item_vector"] for hit in hits]
        distances = np.array([hit["distance"] for hit in hits])
        return Found([hit["id"] for hit in hits], stack(vectors, self._about.dim), distances)


def to_expression(where: Where) -> str:
    """A filter in Milvus's words; a negated condition says that the attribute must exist, as SQL has it."""
    if not isinstance(where, Condition):
        return "(" + f" {where.word} ".join(map(to_expression, where.parts)) + ")"
    field, sign, value = f"attributes[{_literal(where.column)}]", where.sign, where.value
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


def _filter(where: Where | None) -> str:
    return "" if where is None else to_expression(where)


def _literal(value: Value) -> str:
    return json.dumps(value, ensure_ascii=False)


def _types() -> Any:
    from pymilvus import DataType

    return DataType
