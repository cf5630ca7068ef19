"""What holds for every reader: each record once an epoch, a new order each epoch, and an exact resume."""

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openm6.data import Fields, Indexed, Reader, Record, Source
from openm6.data.bad import BadRecord
from openm6.data.embedded import EmojiCorpus, PoemCorpus
from openm6.data.folder import FolderReader
from openm6.data.huggingface import HuggingFaceReader
from openm6.data.lines import LinesReader
from openm6.data.parquet import ParquetReader
from openm6.data.webdataset import WebDatasetReader

N = 29  # records of which one is bad
BAD = 17
FIELDS = Fields({"image": "image", "caption_en": "text"}, image_size=4)


def picture(index: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (3, 5), (index, 2 * index, 255 - index)).save(out, "PNG")
    return out.getvalue()[: 20 if index == BAD else None]


def folder(root: Path) -> Reader:
    for index in range(N):
        path = root / f"class {index % 3}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(index))
    return FolderReader(root, Fields(image_size=4))


def rows(root: Path) -> Iterator[dict[str, str]]:
    for index in range(N):
        (root / f"{index}.png").write_bytes(picture(index))
        yield {"image": f"{index}.png", "text": f'a "quoted", text {index}\nover two lines 林'}


def jsonl(root: Path) -> Reader:
    lines = [json.dumps(row, ensure_ascii=index % 2 == 0) for index, row in enumerate(rows(root))]
    (root / "a.jsonl").write_text("\n".join(lines[:20]) + "\n", encoding="utf-8")
    (root / "b.jsonl").write_text("\n" + "\n\n".join(lines[20:]), encoding="utf-8")
    return LinesReader([root / "a.jsonl", root / "b.jsonl"], "jsonl", FIELDS, block=6)


def csv_file(root: Path) -> Reader:
    with (root / "data.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text"])
        writer.writeheader()
        writer.writerows(rows(root))
    return LinesReader([root / "data.csv"], "csv", FIELDS, block=8)


def parquet(root: Path) -> Reader:
    table = pa.table(
        {"image": [picture(i) for i in range(N)], "text": [f"text {i}" for i in range(N)], "n": range(N)}
    )
    pq.write_table(table.slice(0, 21), root / "a.parquet", row_group_size=9)
    pq.write_table(table.slice(21), root / "b.parquet")
    reader = ParquetReader([root / "a.parquet", root / "b.parquet"], FIELDS, block_bytes=400)
    assert reader.n_blocks > 4  # row groups are read in parts
    return reader


def webdataset(root: Path) -> Reader:
    files = [root / f"{shard}.tar" for shard in range(3)]
    for shard, path in enumerate(files):
        with tarfile.open(path, "w") as tar:
            for index in range(shard, N, 3):
                for extension, data in (("png", picture(index)), ("txt", f"text {index}".encode())):
                    member = tarfile.TarInfo(f"{index:03d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return WebDatasetReader(files, Fields({"image": "image", "caption_en": "txt"}, image_size=4))


def huggingface(root: Path) -> Reader:
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [{"bytes": picture(index), "path": None} for index in range(N)]
    data = {"image": images, "text": [f"text {index}" for index in range(N)]}
    return HuggingFaceReader(datasets.Dataset.from_dict(data, features=features), FIELDS)


BUILDERS: list[Callable[[Path], Reader]] = [folder, jsonl, csv_file, parquet, webdataset, huggingface]


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda builder: builder.__name__)
def reader(request, tmp_path_factory) -> Reader:
    return request.param(tmp_path_factory.mktemp("data"))


def keys(records: Iterator[Record] | list[Record]) -> list[tuple[str, bytes]]:
    return [(record["id"], record["image"].tobytes()) for record in records]


def test_every_epoch_has_every_good_record_once(reader):
    assert reader.total in (N, None)
    source = Source(reader, seed=3)
    epochs = [[record["id"] for record in islice(source, N - 1)] for _ in range(3)]
    assert all(len(set(epoch)) == N - 1 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) == 1
    assert len({tuple(epoch) for epoch in epochs}) == 3  # each in an order of its own
    assert (
        source.bad.count in (2, 3) and len(source.bad.first) == 1
    )  # the third epoch may not have met it yet


def test_records_are_what_the_data_says(reader):
    for record in Source(reader, seed=0, epochs=1, shuffle=False):
        assert record["image"].shape == (4, 4, 3) and record["image"].dtype == np.uint8
        index = int(record["image"][2, 2, 0])
        assert index != BAD
        assert str(index) in record["caption_en"] or record["caption_en"] == f"class {index % 3}"


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**63), k=st.integers(0, 3 * N), shuffle=st.booleans())
def test_resumes_at_the_exact_record(reader, seed, k, shuffle):
    unbroken = Source(reader, seed=seed, shuffle=shuffle)
    expected = keys(list(islice(unbroken, k + N)))
    first = Source(reader, seed=seed, shuffle=shuffle)
    assert keys(list(islice(first, k))) == expected[:k]
    second = Source(reader, seed=seed, shuffle=shuffle)
    list(islice(second, k % 7))  # wherever it stood before
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert keys(list(islice(second, N))) == expected[k:]
    assert second.state_dict() == unbroken.state_dict()


@pytest.mark.parametrize(("corpus", "split"), [(EmojiCorpus, "concept_val"), (PoemCorpus, "val")])
def test_the_embedded_corpora_resume_too(corpus, split):
    corpus = corpus(split)
    n = len(corpus)
    unbroken = Source(corpus, seed=1)
    expected = [record["id"] for record in islice(unbroken, n + 50)]
    assert sorted(expected[:n]) == sorted(row["id"] for row in corpus.rows)
    for k in (0, 1, n - 1, n, n + 7):
        first, second = Source(corpus, seed=1), Source(corpus, seed=1)
        list(islice(first, k))
        second.load_state_dict(first.state_dict())
        assert [record["id"] for record in islice(second, 43)] == expected[k : k + 43]


def test_a_resume_opens_one_block(reader, monkeypatch):
    source = Source(reader, seed=2)
    list(islice(source, 20))
    state, after, opened, block = source.state_dict(), next(source), [], reader.block
    monkeypatch.setattr(reader, "block", lambda index: opened.append(index) or block(index))
    again = Source(reader, seed=2)
    again.load_state_dict(state)
    assert opened == []
    assert next(again)["id"] == after["id"]
    assert len(opened) == 1
    assert len(json.dumps(state)) < 600  # bytes


def test_seed_and_epochs():
    def order(seed: int) -> list[int]:
        return [record["n"] for record in Source(Numbers(50), seed=seed, epochs=2)]

    assert order(5) == order(5) != order(6)
    assert sorted(order(5)) == sorted([*range(50), *range(50)])
    assert [record["n"] for record in Source(Numbers(5), seed=0, epochs=1, shuffle=False)] == [0, 1, 2, 3, 4]
    ended = Source(Numbers(5), seed=0, epochs=1)
    assert len(list(ended)) == 5 and list(ended) == []
    with pytest.raises(ValueError, match="epochs"):
        Source(Numbers(5), seed=0, epochs=0)


def test_refuses_the_state_of_other_data_seed_or_shuffle():
    state = Source(Numbers(50), seed=1).state_dict()
    for other in (
        Source(Numbers(51), seed=1),
        Source(Numbers(50), seed=2),
        Source(Numbers(50), seed=1, shuffle=False),
    ):
        with pytest.raises(ValueError, match="cannot resume"):
            other.load_state_dict(state)


class Numbers(Indexed):
    """Records 0 .. n - 1, those in `bad` being bad."""

    def __init__(self, n: int, bad: frozenset[int] = frozenset()) -> None:
        self.name, self.fingerprint, self.n, self.bad = "numbers", str(n), n, bad

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int, /) -> Record:
        if index in self.bad:
            raise BadRecord(f"number {index}", "is bad")
        return {"n": index}


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 200), fraction=st.floats(0, 0.2), seed=st.integers(0, 1000), shuffle=st.booleans())
def test_stops_exactly_when_more_than_5_percent_are_bad(n, fraction, seed, shuffle):
    bad = frozenset(random.Random(seed).sample(range(n), round(fraction * n)))
    source = Source(Numbers(n, bad), seed=seed, shuffle=shuffle, epochs=1)
    if len(bad) > 0.05 * n:
        with pytest.raises(ValueError, match=r"records are bad, more than max_bad_fraction 0\.05 allows"):
            list(source)
    else:
        assert len(list(source)) == n - len(bad) and source.bad.count == len(bad)


def test_stops_early_when_nothing_can_be_read():
    source = Source(Numbers(100_000, frozenset(range(100_000))), seed=0)
    with pytest.raises(ValueError, match="20 of 20 records are bad"):
        next(source)


def test_a_higher_limit_is_obeyed_but_an_epoch_of_nothing_ends():
    assert len(list(Source(Numbers(40, frozenset(range(10))), seed=0, epochs=1, max_bad_fraction=0.25))) == 30
    with pytest.raises(ValueError, match="4 of 4 records are bad"):
        next(Source(Numbers(4, frozenset(range(4))), seed=0, max_bad_fraction=1))
    with pytest.raises(ValueError, match="no records"):
        next(Source(Numbers(0), seed=0))


def test_warns_by_name_then_counts(caplog):
    source = Source(Numbers(400, frozenset(range(0, 400, 25))), seed=0, epochs=2)
    assert len(list(source)) == 2 * 384
    assert source.bad.count == 32 and len(source.bad.first) == 10
    messages = [record.getMessage() for record in caplog.records]
    assert sum("skipped bad record" in message for message in messages) == 10
    assert messages[0].startswith("numbers: skipped bad record 1: number ")
    assert messages[-1] == "numbers: 16 of 400 records of this epoch were bad"
