"""Bringing an index up to date: add, change, delete; what is unchanged is not encoded; stopped runs are resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openm6.search import indexing
from openm6.search.catalogue import Catalogue
from openm6.search.codes import Codes
from openm6.search.indexing import Changes, update
from openm6.search.lance import LanceStore
from openm6.search.opening import open_store
from openm6.search.store import Entries, Store
from tests.search.conftest import COLOURS, ColourEncoder, png


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    for name, colour in COLOURS.items():
        for i in range(6):
            (folder / f"{name}{i}.png").write_bytes(png(colour, seed=i))
    write(folder, [(f"{name}{i}", i) for name in COLOURS for i in range(6)])
    return folder


def write(folder: Path, rows: Sequence[tuple[str, int | str]]) -> None:
    lines = ["id,image,price", *(f"{name},{name}.png,{price}" for name, price in rows)]
    (folder / "items.csv").write_text("\n".join(lines))


def raises(error: type[BaseException]) -> Callable[[], None]:
    def stop() -> None:
        raise error

    return stop


def run(shop: Path, store: Store, encoder: ColourEncoder, **options: object) -> Changes:
    catalogue = Catalogue(str(shop / "items.csv"), max_bad_fraction=0.2)
    return update(catalogue, store, encoder, workers=2, **options)  # pyright: ignore[reportArgumentType]


def test_add_change_delete(shop: Path, new_store: Callable[[str], Store], encoder: ColourEncoder) -> None:
    store, seen = new_store("index"), list[tuple[str, int, int]]()
    assert run(shop, store, encoder, on_progress=lambda *told: seen.append(told)) == Changes(added=24)
    assert seen[-1] == ("indexing", 24, 24) and seen[0][0] == "reading"
    again = new_store("index")  # another process
    encoder.encoded = 0
    assert run(shop, again, encoder) == Changes(unchanged=24) and encoder.encoded == 0
    # red0 goes, red1 has another price, red2 another picture, yellow is new.
    (shop / "red2.png").write_bytes(png(COLOURS["blue"], seed=99))
    (shop / "yellow.png").write_bytes(png((220, 220, 40)))
    rows = [(f"{name}{i}", i) for name in COLOURS for i in range(6)][2:]
    write(shop, [("red1", 17), *rows, ("yellow", 1)])
    assert run(shop, again, encoder) == Changes(added=1, changed=2, deleted=1, unchanged=21)
    assert encoder.encoded == 2  # red1 has the picture that it had
    assert set(again.hashes()) == {"red1", "yellow", *(name for name, _ in rows)}
    assert again.rows(["red1"])["red1"]["price"] == 17
    blue = again.nearest(encoder.texts(["blue"])[0], 7)
    assert "red2" in blue.ids
    wanted = encoder.images([np.asarray(Image.open(shop / "red1.png"))])[0]
    np.testing.assert_allclose(again.vectors(["red1", "none"])["red1"], wanted, atol=1e-6)


def test_what_is_stored_are_the_encoders_vectors_and_their_codes(
    shop: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    store = open_store(str(tmp_path / "index"))
    run(shop, store, encoder)
    assert store.about is not None
    codes = Codes(store.about.centre, store.about.bits)
    found = store.nearest(encoder.texts(["red"])[0], 24)
    np.testing.assert_allclose(np.linalg.norm(found.vectors_ND, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found.vectors_ND.mean(axis=0), store.about.centre, atol=1e-4)
    for name, vector_D in zip(found.ids, found.vectors_ND, strict=True):
        nearest = store.coarse(codes.pack(vector_D[None])[0], 24)
        assert name in [
            each for each, distance in zip(nearest.ids, nearest.distances_N, strict=True) if distance == 0
        ]


def test_a_run_that_was_stopped_after_its_last_item_is_settled_by_the_next(
    shop: Path, tmp_path: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LanceStore(str(tmp_path / "index"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "settle", raises(KeyboardInterrupt))
        run(shop, store, encoder)
    assert store.table is not None
    assert store.count() == 24 and not store.table.list_indices()
    assert run(shop, store, encoder) == Changes(unchanged=24)
    assert [each.columns for each in store.table.list_indices()] == [["id"]]


def test_two_updates_of_a_folder_at_once_are_refused(
    shop: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    store, other = open_store(str(tmp_path / "index")), open_store(str(tmp_path / "index"))

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "indexing":
            with pytest.raises(ValueError, match="index is being updated by another process: wait for it"):
                run(shop, other, encoder)

    assert run(shop, store, encoder, on_progress=meanwhile) == Changes(added=24)
    assert run(shop, other, encoder) == Changes(unchanged=24)  # it sees what was written a moment ago
    assert other.count() == 24


def test_a_column_without_a_value_is_none_until_it_has_one(
    shop: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    store = open_store(str(tmp_path / "index"))
    (shop / "items.csv").write_text("id,image,sale\nred0,red0.png,\nred1,red1.png,")
    assert run(shop, store, encoder) == Changes(added=2)
    assert run(shop, store, encoder) == Changes(unchanged=2)
    assert store.about is not None and "sale" not in store.about.columns
    (shop / "items.csv").write_text("id,image,sale\nred0,red0.png,5\nred1,red1.png,")
    with pytest.raises(
        ValueError, match="column 'sale' is not as the index has it, which has no such column"
    ):
        run(shop, store, encoder)


def test_kept_items_stay(shop: Path, tmp_path: Path, encoder: ColourEncoder) -> None:
    store = open_store(str(tmp_path / "index"))
    run(shop, store, encoder)
    write(shop, [("red0", 100)])
    assert run(shop, store, encoder, keep=True) == Changes(changed=1)
    assert store.count() == 24
    assert run(shop, store, encoder, allow_deletes=True) == Changes(deleted=23, unchanged=1)


def test_a_catalogue_that_lacks_more_than_a_tenth_of_the_index_deletes_nothing_unasked(
    shop: Path, new_store: Callable[[str], Store], encoder: ColourEncoder
) -> None:
    store, rows = new_store("index"), [(f"{name}{i}", i) for name in COLOURS for i in range(6)]
    run(shop, store, encoder)
    write(shop, [("blue1", 99), *rows[4:13]])
    with pytest.raises(
        ValueError, match="lacks 14 of the 24 items of the index, which this update would delete"
    ):
        run(shop, store, encoder)
    assert store.count() == 24 and store.rows(["blue1"])["blue1"]["price"] == 1  # nothing was written either
    write(shop, rows[2:])
    assert run(shop, store, encoder) == Changes(deleted=2, unchanged=22)
    write(shop, rows[6:])
    assert run(shop, store, encoder, allow_deletes=True) == Changes(deleted=4, unchanged=18)


def test_a_quote_that_never_closes_costs_its_own_item(
    shop: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    store = open_store(str(tmp_path / "index"))
    run(shop, store, encoder)
    lines = (shop / "items.csv").read_text().splitlines()
    lines[7] = lines[7].rpartition(",")[0] + ',"24in'
    (shop / "items.csv").write_text("\n".join(lines))
    found = run(shop, store, encoder)
    assert (found.deleted, found.bad, found.unchanged) == (1, 1, 23)
    assert found.reasons == ["items.csv line 8: a quote opens a field in this line and does not close it"]


def test_prices_that_are_no_numbers_are_noted(shop: Path, tmp_path: Path, encoder: ColourEncoder) -> None:
    store = open_store(str(tmp_path / "index"))
    write(shop, [("red0", 3), ("red1", "¥99"), ("red2", '"1.299,00"')])
    found = run(shop, store, encoder)
    assert found.added == 3 and len(found.notes) == 1
    assert (
        "column 'price' is read as text, because of '¥99' (items.csv line 3): write a plain number"
        in found.notes[0]
    )


def test_pictures_that_cannot_be_read_are_not_in_the_index(
    shop: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    store = open_store(str(tmp_path / "index"))
    run(shop, store, encoder)
    (shop / "red0.png").write_bytes(png(COLOURS["red"])[:60])
    found = run(shop, store, encoder)
    assert (found.deleted, found.bad, found.unchanged) == (1, 1, 23)
    assert "items.csv" in found.reasons[0] and "damaged" in found.reasons[0]
    assert "red0" not in store.hashes()
    for i in range(6):
        (shop / f"red{i}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="of 24 records are bad"):
        run(shop, store, encoder)
    assert store.count() == 23  # nothing was lost by a catalogue that is broken


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_a_stopped_run_is_resumed_by_the_same_command(
    stop_at: int,
    shop: Path,
    new_store: Callable[[str], Store],
    encoder: ColourEncoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("openm6.search.catalogue.LOT", 5)
    store, writes = new_store("index"), 0

    def write_or_stop(entries: Entries, *, known: bool) -> None:
        nonlocal writes
        if writes == stop_at:
            raise KeyboardInterrupt
        writes += 1
        plain(entries, known=known)

    plain = store.write
    monkeypatch.setattr(store, "write", write_or_stop)
    with pytest.raises(KeyboardInterrupt):
        run(shop, store, encoder)
    again = new_store("index")
    assert run(shop, again, encoder) == Changes(added=24 - 5 * stop_at, unchanged=5 * stop_at)
    assert again.count() == 24


def test_the_store_is_tidied_now_and_then(
    shop: Path, tmp_path: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openm6.search.catalogue.LOT", 2)
    monkeypatch.setattr(indexing, "SETTLE", 3)
    store, settled = open_store(str(tmp_path / "index")), list[int]()
    plain = store.settle
    monkeypatch.setattr(store, "settle", lambda: (settled.append(store.count()), plain()))
    assert run(shop, store, encoder) == Changes(added=24)
    assert settled == [6, 12, 18, 24, 24]


def test_an_index_does_not_take_other_vectors_or_other_columns(
    shop: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    store = open_store(str(tmp_path / "index"))
    run(shop, store, encoder)
    write(shop, [("red0", "cheap"), ("red1", 3)])
    with pytest.raises(ValueError, match="column 'price' is not as the index has it, which holds a number"):
        run(shop, store, encoder)
    (shop / "items.csv").write_text("id,image,colour\nred0,red0.png,red\n")
    with pytest.raises(
        ValueError, match="column 'colour' is not as the index has it, which has no such column"
    ):
        run(shop, store, encoder)
    other = ColourEncoder()
    other.fingerprint = "another"
    with pytest.raises(ValueError, match="their vectors do not mix, so make another index"):
        run(shop, store, other)
    assert store.count() == 24


def test_what_changes_while_it_is_read_is_bad(shop: Path, tmp_path: Path, encoder: ColourEncoder) -> None:
    def change(what: str, *_: object) -> None:
        if what == "reading":
            (shop / "red0.png").write_bytes(png(COLOURS["red"], seed=100))

    store = open_store(str(tmp_path / "index"))
    found = run(shop, store, encoder, on_progress=change)
    assert (found.added, found.bad) == (23, 1) and "changed while" in found.reasons[0]
    assert run(shop, store, encoder) == Changes(added=1, unchanged=23)
