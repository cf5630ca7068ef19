"""Both stores against a plain dictionary: writing, replacing, deleting, finding by vector and code, filters."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from openm6.search.codes import Codes, hamming
from openm6.search.opening import open_store
from openm6.search.store import About, Entries, Store
from openm6.search.where import Condition, Group, Kind, Value, Where, parse_where

DIM, BITS, N = 8, 64, 60
COLUMNS: dict[str, Kind] = {"category": "text", "price": "number", "sold out": "flag", "产地": "text"}
ABOUT = About(
    encoder="colour",
    fingerprint="c0105",
    dim=DIM,
    bits=BITS,
    centre=[0.0] * DIM,
    columns=COLUMNS,
    category="category",
)
CODES = Codes(ABOUT.centre, BITS)


def entries(ids: list[int], seed: int = 0) -> Entries:
    """Items whose every attribute is missing now and then."""
    rng = np.random.default_rng(seed)
    vectors_ND = rng.standard_normal((N, DIM)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    attributes: list[dict[str, Value | None]] = [
        {
            "category": None if i % 7 == 6 else ("dress", "it's", 'a "bag"', "50%_off")[i % 4],
            "price": None if i % 5 == 4 else float(i),
            "sold out": None if i % 3 == 2 else i % 2 == 0,
            "产地": None if i % 11 == 10 else ("杭州", "上海")[i % 2],
        }
        for i in range(N)
    ]
    return Entries(
        [f"item {i}" for i in ids],
        [f"hash {i} {seed}" for i in ids],
        vectors_ND[ids],
        CODES.pack(vectors_ND[ids]),
        [attributes[i] for i in ids],
    )


@pytest.fixture
def store(new_store: Callable[[str], Store]) -> Store:
    store = new_store("items")
    assert store.about is None
    store.create(ABOUT)
    store.write(entries(list(range(N))), known=False)
    return store


def test_items_come_back_as_they_were_written_also_after_opening_again(
    store: Store, new_store: Callable[[str], Store]
) -> None:
    store.settle()
    wanted, again = entries(list(range(N))), new_store("items")
    assert again.about == ABOUT and again.count() == N
    assert again.hashes() == dict(zip(wanted.ids, wanted.hashes, strict=True))
    assert again.rows(["item 4", "none", "item 0"]) == {
        "item 0": wanted.attributes[0],
        "item 4": wanted.attributes[4],
    }


def test_items_are_replaced_and_deleted(store: Store) -> None:
    store.write(entries([3, 4], seed=1), known=True)
    store.delete(["item 5", "none"])
    store.settle()
    hashes = store.hashes()
    assert store.count() == len(hashes) == N - 1 and "item 5" not in hashes
    assert {name for name, found in hashes.items() if found.endswith(" 1")} == {"item 3", "item 4"}
    changed = entries([3], seed=1)
    found = store.nearest(changed.vectors_ND[0], 1)
    assert found.ids == ["item 3"]
    np.testing.assert_allclose(found.vectors_ND, changed.vectors_ND, atol=1e-6)
    # A second of the same content is the same item.
    store.write(entries([3], seed=1), known=True)
    assert store.count() == N - 1


def test_finding_agrees_with_comparing_with_all(store: Store) -> None:
    items, query_D = entries(list(range(N))), entries([0], seed=2).vectors_ND[0]
    nearest = np.argsort(-(items.vectors_ND @ query_D))[:7]
    assert store.nearest(query_D, 7).ids == [items.ids[i] for i in nearest]
    code_W = CODES.pack(query_D[None])[0]
    distances_N = hamming(code_W, items.codes_NW)
    found = store.coarse(code_W, 20)
    assert found.distances_N.tolist() == sorted(distances_N)[:20]
    rows = [items.ids.index(name) for name in found.ids]
    np.testing.assert_array_equal(distances_N[rows], found.distances_N)
    np.testing.assert_allclose(found.vectors_ND, items.vectors_ND[rows], atol=1e-6)


FILTERS = [
    "category = 'dress'",
    "category != 'dress'",
    "category = 'it''s' or category = 'a \"bag\"'",
    "category in ('dress', 'it''s')",
    "category not in ('dress', 'it''s')",
    "category like 'd%'",
    "category not like 'd%'",
    "category like '%off'",
    "category like '50%'",
    "category like '%r%s%'",
    "category like 'd_ess'",
    "category not like '___s'",
    "category is null",
    "category is not null",
    "price < 30 and category = 'dress'",
    "not (price >= 10 and price <= 50)",
    "price in (3, 4, 5.5)",
    "price not in (3, 4)",
    "price is null or price > 55.5",
    '"sold out" = true',
    'not "sold out" = true',
    '"sold out" is null and price is null',
    "产地 = '杭州'",
    "产地 != '杭州' and price < 1e1",
]


@pytest.mark.parametrize("text", FILTERS)
def test_every_filter_means_the_same_in_both_stores(text: str, stores: list[Store]) -> None:
    where = parse_where(text, COLUMNS)
    items = entries(list(range(N)))
    wanted = {name for name, row in zip(items.ids, items.attributes, strict=True) if passes(where, row)}
    assert 0 < len(wanted) < N
    for store in stores:
        assert set(store.nearest(items.vectors_ND[0], N, where).ids) == wanted
        assert set(store.coarse(items.codes_NW[0], N, where).ids) == wanted
        assert store.count(where) == len(wanted)


def passes(where: Where, row: object) -> bool:
    """What SQL says, in Python: nothing but `is null` is true of a missing value."""
    assert isinstance(row, dict)
    if isinstance(where, Group):
        return (all if where.word == "and" else any)(passes(part, row) for part in where.parts)
    assert isinstance(where, Condition)
    value, wanted = row[where.column], where.value
    if where.sign in ("is null", "is not null"):
        return (value is None) == (where.sign == "is null")
    if value is None:
        return False
    if where.sign.endswith("like"):
        assert isinstance(wanted, str)
        parts = (".*" if each == "%" else "." if each == "_" else re.escape(each) for each in wanted)
        return (re.fullmatch("".join(parts), value) is not None) != where.sign.startswith("not")
    if isinstance(wanted, tuple):
        return (value in wanted) != where.sign.startswith("not")
    compare = {"=": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
    return getattr(value, compare[where.sign])(wanted)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    folder = tmp_path_factory.mktemp("stores")
    found = [open_store(str(folder / name)) for name in ("items", "items.db")]
    for store in found:
        store.create(ABOUT)
        store.write(entries(list(range(N))), known=False)
    return found


def test_a_code_is_half_the_bits_away_from_its_opposite(store: Store) -> None:
    """Distances come as Hamming's also where a store keeps codes in another form."""
    code_W = entries([0]).codes_NW[0]
    assert store.coarse(code_W, 1).distances_N.tolist() == [0]
    store.delete([f"item {i}" for i in range(1, N)])
    assert store.coarse(~code_W, 1).distances_N.tolist() == [BITS]


STRANGE = [
    "C:\\dir",
    "C:%",
    "a\x0bb",
    "a\x1bb",
    "a\nb",
    "a\r\nb",
    "a\tb",
    "a\u2028b",
    "a'b",
    'a"b',
    " a",
    "é" * 400,
]


def test_strange_ids_and_values_are_found_as_they_are(
    new_store: Callable[[str], Store], capfd: pytest.CaptureFixture[str]
) -> None:
    store, items = new_store("items"), entries(list(range(len(STRANGE))))
    store.create(ABOUT)
    rows = [{**items.attributes[i], "category": value} for i, value in enumerate(STRANGE)]
    store.write(Entries(STRANGE, items.hashes, items.vectors_ND, items.codes_NW, rows), known=False)
    assert list(store.hashes()) and set(store.hashes()) == set(STRANGE)
    for value in STRANGE:
        assert set(store.rows([value])) == set(store.vectors([value])) == {value}
        for where in (Condition("category", "=", value), Condition("category", "in", (value, "none"))):
            assert store.nearest(items.vectors_ND[0], len(STRANGE), where).ids == [value]
    assert list(store.page(100)) == sorted(STRANGE)
    # In a pattern, a backslash is a backslash: it escapes neither % nor itself.
    for pattern, wanted in (
        ("C:\\%", ["C:\\dir"]),
        ("C:\\\\%", []),
        ("C:%", ["C:%", "C:\\dir"]),
        ("C:_", ["C:%"]),
    ):
        found = store.nearest(items.vectors_ND[0], len(STRANGE), Condition("category", "like", pattern))
        assert sorted(found.ids) == wanted
    store.delete(STRANGE[1:])
    assert store.count() == 1
    assert capfd.readouterr() == ("", "")  # databases do not talk


def test_pages_are_in_the_order_of_ids_and_scans_are_of_all(store: Store) -> None:
    items, cheap = entries(list(range(N))), parse_where("price < 30", COLUMNS)
    rows = dict(zip(items.ids, items.attributes, strict=True))
    passing = sorted(name for name, row in rows.items() if passes(cheap, row))
    assert store.page(7, cheap) == {name: rows[name] for name in passing[:7]}
    assert list(store.page(7, cheap, passing[6])) == passing[7:14]
    assert store.page(5, after="item 9") == {} and list(store.page(2)) == sorted(rows)[:2]
    scanned = {name: row for part in store.scan(["price"], cheap) for name, row in part.items()}
    assert scanned == {name: {"price": rows[name]["price"]} for name in passing}
    assert store.rows(items.ids, cheap) == {name: rows[name] for name in passing}


def test_what_is_found_comes_with_its_attributes(store: Store) -> None:
    items = entries(list(range(N)))
    rows = dict(zip(items.ids, items.attributes, strict=True))
    for found in (store.nearest(items.vectors_ND[3], 5), store.coarse(items.codes_NW[3], 5)):
        assert list(found.rows) == [rows[name] for name in found.ids]
        assert found.take([2, 0]).ids == [found.ids[2], found.ids[0]]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("FILE", "cannot be opened"),
        ("http://127.0.0.1:9", "cannot be opened"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, words: str, tmp_path: object) -> None:
    file = f"{tmp_path}/file"
    with open(file, "w") as handle:
        handle.write("no database")
    with pytest.raises(ValueError, match=words):
        open_store(address.replace("FILE", file))
