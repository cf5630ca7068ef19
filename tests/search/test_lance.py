"""The index of codes on LanceDB: exhaustive before and after writes that it does not know yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openm6.search import lance
from openm6.search.codes import hamming
from openm6.search.lance import LanceStore, to_sql
from openm6.search.store import About, Entries
from openm6.search.where import Condition, Group

DIM, BITS = 4, 64


def entries(start: int, stop: int) -> Entries:
    rng = np.random.default_rng(start)
    n = stop - start
    attributes = [{"price": float(i % 10)} for i in range(start, stop)]
    codes = rng.integers(0, 256, (n, BITS // 8), dtype=np.uint8)
    codes[: n // 2] = codes[0] ^ (codes[: n // 2] & 0x11)  # half of them crowd, as codes do
    vectors = rng.standard_normal((n, DIM)).astype(np.float32)
    return Entries([str(i) for i in range(start, stop)], ["-"] * n, vectors, codes, attributes)


def test_an_indexed_table_answers_as_comparing_with_every_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance, "INDEX_CODES_FROM", 500)
    monkeypatch.setattr(lance, "PARTITIONS", 8)
    store = LanceStore(str(tmp_path))
    about = {"encoder": "e", "fingerprint": "f", "dim": DIM, "bits": BITS, "centre": [0.0] * DIM}
    store.create(About(**about, columns={"price": "number"}, category=None))
    codes: dict[str, np.ndarray] = {}

    def check() -> None:
        names, codes_NW = list(codes), np.stack(list(codes.values()))
        for query_W in codes_NW[:: len(names) // 2]:
            distances_N = hamming(query_W, codes_NW)
            for where in (None, Condition("price", "<", 2.0)):
                passing = [i for i, name in enumerate(names) if where is None or int(name) % 10 < 2]
                found = store.coarse(query_W, 90, where)
                assert found.distances_N.tolist() == sorted(distances_N[passing])[:90]
                assert where is None or all(int(name) % 10 < 2 for name in found.ids)
                told = dict(zip(found.ids, found.distances_N, strict=True))
                assert all(distances_N[names.index(name)] == distance for name, distance in told.items())

    def write(start: int, stop: int) -> None:
        lot = entries(start, stop)
        store.write(lot, known=False)
        codes.update(zip(lot.ids, lot.codes_NW, strict=True))

    write(0, 600)
    check()
    store.settle()
    assert store.table is not None
    assert {each.columns[0] for each in store.table.list_indices()} == {"id", "item_code"}
    check()
    write(600, 800)  # not in the index yet
    gone = [str(i) for i in range(0, 800, 7)]
    store.delete(gone)
    codes = {name: code for name, code in codes.items() if name not in set(gone)}
    check()
    store.settle()
    check()
    assert store.count() == len(codes)


def test_a_filter_in_sql() -> None:
    where = Group("and", (Condition("sold out", "=", True), Condition("name", "like", "it's%")))
    assert to_sql(where) == "(`sold out` = true AND `name` LIKE 'it''s%')"
    assert to_sql(Condition("price", "not in", (1.0, 2.5))) == "`price` NOT IN (1.0, 2.5)"
    assert to_sql(Condition("price", "is not null")) == "`price` IS NOT NULL"


def test_what_is_no_index_is_told(tmp_path: Path) -> None:
    (tmp_path / "items.lance").mkdir()
    (tmp_path / "items.lance" / "rubbish").write_text("rubbish")
    assert LanceStore(str(tmp_path)).about is None
    import lancedb
    import pyarrow as pa

    other = tmp_path / "other"
    lancedb.connect(str(other)).create_table("items", data=pa.table({"a": [1]}))
    with pytest.raises(ValueError, match="is not one of openm6 search"):
        LanceStore(str(other))
