"""The same store on Milvus: a server or cluster (`http://host:19530`), or Milvus Lite in a file (`shop.db`).

One collection; the `About` is its description, the attributes are one JSON field, so that a column may have any
name. Milvus Lite 3 knows no binary vectors: there, a code is stored as a vector of +1 and -1, whose inner product
is `bits - 2 Hamming`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from openm6.search.catalogue import Attributes
from openm6.search.store import About, Entries, Found, Store, attributes_of, stack
from openm6.search.where import Condition, Value, Where

COLLECTION = "openm6_items"
IDS_AT_A_TIME = 1000
MAX_ID = 1024  # bytes


class MilvusStore(Store):
    """Raises ValueError if `pymilvus` is not installed or the server does not answer."""

    def __init__(self, address: str) -> None:
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise ValueError("a Milvus index needs the extra search: pip install 'openm6[search]'") from error
        try:
            self.client = MilvusClient(address)
            self._about = self._open()
        except MilvusException as error:
            raise ValueError(f"the Milvus index {address} cannot be opened: {error.message}") from error

    def _open(self) -> About | None:
        if not self.client.has_collection(COLLECTION):
            return None
        description: dict[str, Any] = self.client.describe_collection(COLLECTION)
        kinds = {each["name"]: each["type"] for each in description["fields"]}
        self.binary = kinds["item_code"] == _types().BINARY_VECTOR
        self.client.load_collection(COLLECTION)
        return About.model_validate_json(description["description"])

    @property
    def about(self) -> About | None:
        return self._about

    def create(self, about: About) -> None:
        from pymilvus import MilvusException

        try:
            self._create(about, binary=True)
        except MilvusException as error:
            if "BinaryVector" not in error.message:
                raise
            self._create(about, binary=False)
        self._about = about

    def _create(self, about: About, *, binary: bool) -> None:
        types = _types()
        schema = self.client.create_schema(auto_id=False, description=about.model_dump_json())
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=MAX_ID)
        schema.add_field("item_hash", types.VARCHAR, max_length=64)
        schema.add_field("item_vector", types.FLOAT_VECTOR, dim=about.dim)
        schema.add_field("item_code", types.BINARY_VECTOR if binary else types.FLOAT_VECTOR, dim=about.bits)
        schema.add_field("attributes", types.JSON)
        indices = self.client.prepare_index_params()
        indices.add_index("item_vector", index_type="FLAT", metric_type="IP")
        kind = (
            {"index_type": "BIN_FLAT", "metric_type": "HAMMING"}
            if binary
            else {"index_type": "FLAT", "metric_type": "IP"}
        )
        indices.add_index("item_code", **kind)
        # Strong: what this process has written, its next search finds.
        self.client.create_collection(
            COLLECTION, schema=schema, index_params=indices, consistency_level="Strong"
        )
        self.binary = binary

    def hashes(self) -> dict[str, str]:
        pages = self.client.query_iterator(
            COLLECTION, batch_size=IDS_AT_A_TIME, output_fields=["id", "item_hash"]
        )
        found: dict[str, str] = {}
        while page := pages.next():
            found |= {row["id"]: row["item_hash"] for row in page}
        pages.close()
        return found

    def write(self, entries: Entries, *, known: bool) -> None:
        codes = list(map(self._code, entries.codes_NW))
        rows = zip(entries.ids, entries.hashes, entries.vectors_ND, codes, entries.attributes, strict=True)
        names = ("id", "item_hash", "item_vector", "item_code", "attributes")
        data = [dict(zip(names, row, strict=True)) for row in rows]
        for row in data:  # a missing value is a missing key, which `exists` tells
            row["attributes"] = {
                name: value for name, value in row["attributes"].items() if value is not None
            }
        self.client.upsert(COLLECTION, data)  # Milvus would insert an id twice

    def delete(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), IDS_AT_A_TIME):
            self.client.delete(COLLECTION, ids=list(ids[start : start + IDS_AT_A_TIME]))

    def settle(self) -> None:
        self.client.flush(COLLECTION)

    def count(self, where: Where | None = None) -> int:
        rows: Any = self.client.query(COLLECTION, filter=_filter(where), output_fields=["count(*)"])
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
        rows: Any = (
            self.client.get(COLLECTION, ids=list(ids), output_fields=["id", "attributes"]) if ids else []
        )
        return {row["id"]: attributes_of(row["attributes"], self._about.columns) for row in rows}

    def _code(self, code_W: np.ndarray) -> Any:
        return code_W.tobytes() if self.binary else np.unpackbits(code_W).astype(np.float32) * 2 - 1

    def _search(self, field: str, query: Any, n: int, where: Where | None, *, metric: str) -> Found:
        assert self._about is not None
        [hits] = self.client.search(
            COLLECTION,
            data=[query],
            anns_field=field,
            limit=n,
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
