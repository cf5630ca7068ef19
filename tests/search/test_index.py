"""The front of visual search: update, query by picture, words or both, filters, quality signals."""

from __future__ import annotations

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openm6.search import Changes, Index
from openm6.search.encoders import Encoder
from openm6.search.opening import open_store
from openm6.search.shards import ShardedStore
from openm6.search.store import Entries, Found, Unavailable
from tests.search.conftest import COLOURS, png


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["id,image,category,price,sales"]
    for number, (name, colour) in enumerate(COLOURS.items()):
        for i in range(5):
            (folder / f"{name}{i}.png").write_bytes(png(colour, seed=10 * number + i))
            lines.append(f"{name}-{i},{name}{i}.png,{'dress' if i % 2 else 'shoe'},{100 * i},{10 ** (4 - i)}")
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def index(shop: Path, tmp_path: Path, encoder: Encoder) -> Index:
    index = Index.open(str(tmp_path / "index"), encoder=encoder)
    assert index.update(str(shop / "items.csv")) == Changes(added=20)
    return index


def test_a_picture_finds_itself_and_then_its_like(index: Index, shop: Path) -> None:
    hits = index.query(image=shop / "red3.png", n=5)
    assert hits[0].id == "red-3" and hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert {hit.id for hit in hits} == {f"red-{i}" for i in range(5)}
    assert hits[0].attributes == {"category": "dress", "price": 300.0, "sales": 10.0, "image": "red3.png"}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_words_filters_and_both_kinds_of_query(index: Index, shop: Path) -> None:
    where = "category = 'dress' and price < 300"
    assert [hit.id for hit in index.query(text="blue", where=where, n=1)] == ["blue-1"]
    assert {hit.attributes["category"] for hit in index.query(image=shop / "red3.png", where=where)} == {
        "dress"
    }
    assert index.count() == 20 and index.count(where) == 4
    # Half red and half blue, the share of the words decides.
    for weight, name in ((0.05, "red"), (0.95, "blue")):
        hits = index.query(image=shop / "red3.png", text="blue", n=5, text_weight=weight)
        assert {hit.id.split("-")[0] for hit in hits} == {name}


def test_a_filter_alone_finds_in_the_order_of_ids_page_by_page(index: Index) -> None:
    wanted = sorted(f"{name}-{i}" for name in COLOURS for i in range(3))
    assert [hit.id for hit in index.query(where="price < 300", n=100)] == wanted
    pages, after = list[str](), None
    while page := index.query(where="price < 300", n=5, after=after):
        pages += [hit.id for hit in page]
        after = page[-1].id
    assert pages == wanted
    assert [hit.id for hit in index.find(n=2)] == ["blue-0", "blue-1"]  # all items, without a filter
    [first] = index.query(where="price = 0", n=1)
    assert (first.id, first.score, first.attributes["category"]) == ("blue-0", 0.0, "shoe")


def test_an_encoder_without_words_matches_them_with_ids_and_texts(index: Index, shop: Path) -> None:
    assert index.reads_words
    index.encoder.reads_words = False
    assert not index.reads_words
    assert [hit.id for hit in index.query(text="Green DRESS", n=3)] == ["green-1", "green-3", "blue-1"]
    assert [hit.score for hit in index.query(text="Green DRESS", n=3)] == [1.0, 1.0, 0.5]
    assert [hit.id for hit in index.query(text="dres", where="price > 200")] == [
        f"{name}-3" for name in sorted(COLOURS)
    ]
    assert index.query(text="trousers") == []
    assert index.query(text="shoe", n=1, quality={"price": 1})[0].attributes["price"] == 400
    # With a picture, words move the items up that have them.
    hits = index.query(image=shop / "red3.png", text="shoe", n=5, text_weight=0.4)
    assert [hit.attributes["category"] for hit in hits[:3]] == ["shoe"] * 3 and hits[0].id.startswith("red")


def test_hits_pass_their_filter_whatever_is_updated_meanwhile(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prices change after the search for vectors, and before anything that might be read after it."""
    store, find = index.store, index.store.nearest
    hashes = store.hashes()

    def find_and_update(*asked: Any) -> Found:
        found = find(*asked)
        rows, vectors = store.rows(found.ids), store.vectors(found.ids)
        vectors_ND = np.stack([vectors[name] for name in found.ids])
        changed = [{**rows[name], "price": 1e6} for name in found.ids]
        codes_NW = np.zeros((len(found.ids), index._coder(index.about).planes_DB.shape[1] // 8), np.uint8)  # pyright: ignore[reportArgumentType]
        store.write(
            Entries(found.ids, [hashes[n] for n in found.ids], vectors_ND, codes_NW, changed), known=True
        )
        return found

    monkeypatch.setattr(store, "nearest", find_and_update)
    hits = index.query(text="red", where="price < 300", n=6)
    assert len(hits) == 6 and all(float(hit.attributes["price"] or 0) < 300 for hit in hits)
    assert store.rows([hits[0].id])[hits[0].id]["price"] == 1e6


def test_an_index_that_was_moved_away_is_unavailable_until_it_is_back(index: Index, tmp_path: Path) -> None:
    (tmp_path / "index").rename(tmp_path / "elsewhere")
    for ask in (
        lambda: index.query(text="red"),
        lambda: index.query(where="price < 300"),
        lambda: index.query(text="red", where="price < 300"),
    ):
        with pytest.raises(Unavailable, match="/index cannot be used: "):
            ask()
    (tmp_path / "elsewhere").rename(tmp_path / "index")
    assert len(index.query(text="red")) == 10


def test_quality_moves_good_items_up_among_those_alike(index: Index) -> None:
    plain = index.query(text="green", n=5)
    ordered = index.query(text="green", n=5, quality={"sales": 0.05})
    assert [hit.id for hit in ordered] == [f"green-{i}" for i in range(5)]
    assert {hit.id: hit.similarity for hit in plain} == {hit.id: hit.similarity for hit in ordered}
    cheap = index.query(text="green", n=5, quality={"price": -0.05})
    assert [hit.attributes["price"] for hit in cheap] == [0, 100, 200, 300, 400]


def test_an_index_is_opened_again_by_another_process(index: Index, tmp_path: Path, encoder: Encoder) -> None:
    again = Index.open(str(tmp_path / "index"), encoder=encoder)
    assert again.columns == {"image": "text", "category": "text", "price": "number", "sales": "number"}
    assert again.about is not None and again.about.category == "category"
    assert [hit.id for hit in again.query(text="grey")] == [hit.id for hit in index.query(text="grey")]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({}, "needs a picture, a text, or a filter"),
        ({"text": "red", "after": "red-1"}, "after is for a search by a filter alone"),
        ({"where": "price < 3", "quality": {"price": 1}}, "leave them out"),
        ({"text": " "}, "must be text that says something"),
        ({"image": "/no/such.png"}, "/no/such.png: no such file"),
        ({"text": "red", "n": 0}, "n must lie between 1 and 1000"),
        ({"text": "red", "quality": {"price": math.nan}}, "signal 'price' must be a number, not nan"),
        ({"text": "red", "text_weight": 2}, "text_weight must lie between 0 and 1"),
        ({"text": "red", "where": "colour = 'red'"}, "the index has no column 'colour'"),
        (
            {"text": "red", "quality": {"category": 1}},
            "no column of numbers of this index; it has ['price', 'sales']",
        ),
    ],
)
def test_queries_that_are_none_are_told_why(query: dict[str, object], words: str, index: Index) -> None:
    with pytest.raises(ValueError) as error:
        index.query(**query)  # pyright: ignore[reportArgumentType]
    assert words in str(error.value)


def test_where_there_is_no_index_a_query_says_so_and_makes_none(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.open(str(tmp_path / "nothing"), encoder=encoder)
    with pytest.raises(ValueError, match="there is no index at this address yet"):
        index.query(text="red")
    assert not (tmp_path / "nothing").exists()


def test_vectors_of_another_encoder_are_not_compared(index: Index, tmp_path: Path, encoder: Encoder) -> None:
    encoder.fingerprint = "another"
    with pytest.raises(ValueError, match="their vectors do not compare"):
        Index.open(str(tmp_path / "index"), encoder=encoder).query(text="red")


def test_threads_get_the_answers_that_one_gets(index: Index) -> None:
    texts = list(COLOURS) * 5
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: index.query(text=text, where="price < 300"), texts))
    assert found == [index.query(text=text, where="price < 300") for text in texts]


def test_a_shard_is_no_index_and_no_place_is_two_shards(shop: Path, tmp_path: Path, encoder: Encoder) -> None:
    places = [str(tmp_path / name) for name in ("one", "two", "three")]
    Index.open(places, encoder=encoder).update(str(shop / "items.csv"))
    with pytest.raises(
        ValueError, match="store 1 of 1 is part 1 of 3 of an index by colour: name all stores"
    ):
        Index.open(places[0], encoder=encoder)
    with pytest.raises(ValueError, match="one address is there twice"):
        Index.open([places[0], places[0]], encoder=encoder)


def test_shards_whose_making_was_stopped_are_made_by_the_same_command(
    shop: Path, tmp_path: Path, encoder: Encoder
) -> None:
    (tmp_path / "file").write_text("no folder")
    wrong, right = [[str(tmp_path / "one"), str(tmp_path / name)] for name in ("file/two", "two")]
    with pytest.raises(OSError, match="file/two"):
        Index.open(wrong, encoder=encoder).update(str(shop / "items.csv"))
    for _ in range(2):
        index = Index.open(right, encoder=encoder)
        index.update(str(shop / "items.csv"))
        assert index.count() == 20
    # The second shard is made first; the first one was lost.
    shutil.rmtree(right[0])
    with pytest.raises(ValueError, match="store 1 of 2 is empty: name all stores of one index"):
        Index.open(right, encoder=encoder)
    parts = ShardedStore([open_store(str(tmp_path / name)) for name in ("three", "four")])
    assert index.about is not None
    parts.shards[1].create(index.about.model_copy(update={"part": (2, 2)}))
    again = Index.open([str(tmp_path / "three"), str(tmp_path / "four")], encoder=encoder)
    assert again.update(str(shop / "items.csv")) == Changes(added=20)


def test_what_the_database_complains_of_is_told_in_a_sentence(index: Index, tmp_path: Path) -> None:
    for part in (tmp_path / "index" / "items.lance" / "data").iterdir():
        part.unlink()
    with pytest.raises(Unavailable, match="/index cannot be used: ") as error:
        index.query(text="red")
    assert "\n" not in str(error.value) and ".rs" not in str(error.value)


def test_an_index_that_another_process_makes_is_seen(shop: Path, tmp_path: Path, encoder: Encoder) -> None:
    early = Index.open(str(tmp_path / "late"), encoder=encoder)
    assert early.about is None
    Index.open(str(tmp_path / "late"), encoder=encoder).update(str(shop / "items.csv"))
    assert early.count() == 20 and early.query(text="red", n=1)[0].id.startswith("red")
