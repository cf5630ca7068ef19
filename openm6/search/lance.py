"""The default store: LanceDB, embedded, in a folder or in any place that it takes, such as `s3://bucket/shop`.

The store is one table. The metadata of its schema holds the `About`. A large table gets an index of codes, and
every search looks at all partitions of this index. The index keeps the codes in memory, which takes a quarter of
the time of reading them from the table. A search compares with every code, so the answer does not depend on the
layout of items in files or shards. Each search reads one version of the table, with its attributes.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

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
from openm6.search.values import Attributes
from openm6.search.where import Condition, Group, Kind, Value, Where

TABLE, LOCK = "items", "update.lock"
IDS_AT_A_TIME = 1000  # in one `id IN (...)`
ARROW = {"text": pa.string(), "number": pa.float64(), "flag": pa.bool_()}
KEEP_VERSIONS = timedelta(hours=1)  # for readers that are still at work on an older one
INDEX_CODES_FROM = 20_000  # items
PARTITIONS = 64  # of the codes' index, searched in parallel
READ_AFRESH = timedelta(seconds=2)  # after which a reader sees what another process wrote


class LanceStore(DatabaseStore):
    """A store on LanceDB. Raises ValueError if `lancedb` is not installed or the address holds no such database."""

    def __init__(self, address: str) -> None:
        try:
            import lancedb  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "an index in a folder needs the extra search: pip install 'openm6[search]'"
            ) from error
        self.address, self.table, self._about = address, None, None
        self.complaints = (RuntimeError,)
        self.remote = "://" in address
        self._open()

    def _open(self) -> None:
        if not self.remote and not Path(self.address).exists():  # made when something is put into it
            return
        try:
            self.table = self._database().open_table(TABLE)
        except (OSError, RuntimeError, ValueError) as error:
            if isinstance(error, ValueError) and "was not found" in str(error):
                return
            raise Unavailable(f"the index {self.address} cannot be opened: {complaint(error)}") from error
        about = (self.table.schema.metadata or {}).get(b"about")
        if about is None:
            raise ValueError(
                f"the table {TABLE!r} at {self.address} is not one of openm6 search: take another place"
            )
        self._about = About.model_validate_json(about)

    def _database(self) -> Any:
        import lancedb

        return lancedb.connect(self.address, read_consistency_interval=READ_AFRESH)

    @property
    def about(self) -> About | None:
        if self._about is None:  # another process may have made it since
            self._open()
        return self._about

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Detects another process that updates the index, but only in a folder of this machine."""
        if self.remote:
            yield
            return
        Path(self.address).mkdir(parents=True, exist_ok=True)
        with open(Path(self.address, LOCK), "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"the index {self.address} is being updated by another process: wait for it to end."
                ) from None
            if self.about is not None:
                self._table.checkout_latest()
            yield

    def create(self, about: About) -> None:
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("item_hash", pa.string(), nullable=False),
                pa.field("item_vector", pa.list_(pa.float32(), about.dim)),
                pa.field("item_code", pa.list_(pa.uint8(), about.bits // 8)),
                *(pa.field(name, ARROW[kind]) for name, kind in about.columns.items()),
            ],
            metadata={"about": about.model_dump_json()},
        )
        try:
            # A table that is there already is a shard without items, of an index whose making was stopped.
            mode = "create" if self.table is None else "overwrite"
            self.table = self._database().create_table(TABLE, schema=schema, mode=mode)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"no index can be made at {self.address}: {complaint(error)}") from error
        self._about = about

    def hashes(self) -> dict[str, str]:
        rows = self._table.search().select(["id", "item_hash"]).to_arrow()
        return dict(zip(rows["id"].to_pylist(), rows["item_hash"].to_pylist(), strict=True))

    def write(self, entries: Entries, *, known: bool) -> None:
        assert self._about is not None
        vectors, codes = entries.vectors_ND.astype(np.float32), entries.codes_NW.astype(np.uint8)
        columns = {
            "id": list(entries.ids),
            "item_hash": list(entries.hashes),
            "item_vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
            "item_code": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1]),
        }
        columns |= {name: [each.get(name) for each in entries.attributes] for name in self._about.columns}
        data = pa.table(columns, schema=self._table.schema)
        if known:
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(data)
        else:
            self._table.add(data)

    def delete(self, ids: Sequence[str]) -> None:
        for part in _parts(ids):
            self._table.delete(to_sql(Condition("id", "in", part)))

    def settle(self) -> None:
        from lancedb.index import BTree, IvfFlat

        indexed, items = {each.columns[0] for each in self._table.list_indices()}, self._table.count_rows()
        if items and "id" not in indexed:
            self._table.create_index("id", config=BTree())
        if items >= INDEX_CODES_FROM and "item_code" not in indexed:
            config = IvfFlat(distance_type="hamming", num_partitions=PARTITIONS)
            self._table.create_index("item_code", config=config)
        self._table.optimize(cleanup_older_than=KEEP_VERSIONS)

    def count(self, where: Where | None = None) -> int:
        return self._table.count_rows(to_sql(where) if where is not None else None)

    def nearest(self, query_D: np.ndarray, n: int, where: Where | None = None) -> Found:
        return self._search(query_D.astype(np.float32), n, where, column="item_vector", distance="dot")

    def coarse(self, code_W: np.ndarray, n: int, where: Where | None = None) -> Found:
        return self._search(code_W, n, where, column="item_code", distance="hamming")

    def rows(self, ids: Sequence[str], where: Where | None = None) -> dict[str, Attributes]:
        columns = self._columns
        return {row["id"]: attributes_of(row, columns) for row in self._of(ids, list(columns), where)}

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        rows = self._of(ids, ["item_vector"])
        return {row["id"]: np.array(row["item_vector"], np.float32) for row in rows}

    def scan(self, columns: Sequence[str], where: Where | None = None) -> Iterator[dict[str, Attributes]]:
        kinds: dict[str, Kind] = {name: self._columns[name] for name in columns}
        query = self._table.search().select(["id", *columns])
        if where is not None:
            query = query.where(to_sql(where))
        for batch in query.to_batches():
            yield {row["id"]: attributes_of(row, kinds) for row in batch.to_pylist()}

    def _of(
        self, ids: Sequence[str], columns: list[str], where: Where | None = None
    ) -> Iterator[dict[str, Any]]:
        for part in _parts(ids):
            chosen = Condition("id", "in", part)
            query = self._table.search().where(to_sql(Group("and", (chosen, where)) if where else chosen))
            yield from query.select(["id", *columns]).to_arrow().to_pylist()

    @property
    def _columns(self) -> dict[str, Kind]:
        assert self._about is not None, "the index has not been created"
        return self._about.columns

    @property
    def _table(self) -> Any:
        assert self.table is not None, "the index has not been created"
        return self.table

    def _search(self, query: np.ndarray, n: int, where: Where | None, *, column: str, distance: str) -> Found:
        assert self._about is not None
        search = self._table.search(query, vector_column_name=column).distance_type(distance).limit(n)
        search = search.nprobes(PARTITIONS)
        if where is not None:
            search = search.where(to_sql(where), prefilter=True)
        columns = self._columns
        rows = search.select(["id", "item_vector", "_distance", *columns]).to_arrow()
        vectors = rows["item_vector"].combine_chunks().flatten().to_numpy()
        attributes = [attributes_of(row, columns) for row in rows.select(list(columns)).to_pylist()]
        return Found(
            rows["id"].to_pylist(),
            stack(vectors, self._about.dim),
            rows["_distance"].to_numpy(),
            attributes or [{}] * rows.num_rows,
        )


def to_sql(where: Where) -> str:
    """A filter in LanceDB's SQL."""
    if not isinstance(where, Condition):
        return "(" + f" {where.word.upper()} ".join(map(to_sql, where.parts)) + ")"
    column, sign, value = quoted(where.column), where.sign.upper(), where.value
    if value is None:
        return f"{column} {sign}"
    if isinstance(value, tuple):
        return f"{column} {sign} ({', '.join(map(_literal, value))})"
    if where.sign in ("like", "not like") and isinstance(value, str):
        value = value.replace("\\", "\\\\")  # a backslash is one, and escapes nothing
    return f"{column} {sign} {_literal(value)}"


def quoted(column: str) -> str:
    return f"`{column}`"


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _parts(ids: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(ids[start : start + IDS_AT_A_TIME]) for start in range(0, len(ids), IDS_AT_A_TIME))
