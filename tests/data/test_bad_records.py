"""One bad record among good ones, for every fault in every kind of data: skipped, counted and named."""

import io
import json
import os
import tarfile
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

from openm6.data import BadRecord, DataConfig, Fields, Source, open_source
from openm6.data.huggingface import HuggingFaceReader
from openm6.data.webdataset import WebDatasetReader

GOOD = 30
IMAGE_AND_TEXT = {"image": "image", "caption_en": "text"}


def png(index: int = 0) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(out, "PNG")
    return out.getvalue()


BAD_PICTURES = {
    "truncated": (png()[:60], "truncated or damaged"),
    "empty": (b"", "empty"),
    "text": (b"not a picture", "not an image"),
    "bomb": (bomb(), "huge"),
}


def skips_one(
    path: Path | str, *, named: str, why: str, good: int = GOOD, columns: dict | None = None
) -> None:
    source = open_source(DataConfig(path=str(path), image_size=8, columns=columns or {}), seed=1, epochs=1)
    assert len(list(source)) == good
    assert source.bad.count == 1
    assert named in source.bad.first[0] and why in source.bad.first[0], source.bad.first


@pytest.mark.parametrize("fault", BAD_PICTURES)
def test_folder(tmp_path, fault):
    data, why = BAD_PICTURES[fault]
    (tmp_path / "cat").mkdir()
    for index in range(GOOD):
        (tmp_path / "cat" / f"{index}.png").write_bytes(png(index))
    (tmp_path / "cat" / "bad.png").write_bytes(data)
    skips_one(tmp_path, named="cat/bad.png: ", why=why)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"none.png,a text", "no such file"),
        (b",a text", "has no image"),
        (b"https://example.org/a.png,a text", "download it first"),
        (b".,a text", "not a regular file"),
        (b"pipe,a text", "not a regular file"),
        (b"cut.png,a text", "truncated"),
        (b"0.png,", "the text in 'text' is empty"),
        (b"0.png,  ", "the text in 'text' is empty"),
        (b"0.png,caf\xe9", "the text in 'text' is not UTF-8"),
        (b"caf\xe9.png,a text", "no such file"),
        (b"0.png", "the row has 1 fields, the header has 2"),
        (b"0.png,a text,more", "the row has 3 fields, the header has 2"),
        (b'0.png,"' + b"x" * 2**24 + b'"', "the row is huge"),
        (b'0.png,"24in', "a quote opens a field in this line and does not close it"),
        (b'0.png,"24"in', "text follows a closing quote"),
    ],
)
def test_csv(tmp_path, line, why):
    for index in range(GOOD):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    (tmp_path / "cut.png").write_bytes(png()[:60])
    os.mkfifo(tmp_path / "pipe")
    good = [f'{index}.png,"text {index}"'.encode() for index in range(GOOD)]
    lines = [b"image,text", *good[:7], b'7.png,"over\ntwo lines"', line, *good[8:]]
    (tmp_path / "data.csv").write_bytes(b"\r\n".join(lines))
    skips_one(tmp_path / "data.csv", columns=IMAGE_AND_TEXT, named="data.csv line 11: ", why=why)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"title": "', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["a"]', "must be a JSON object, not list"),
        (b'{"title": "caf\xe9"}', "the line is not UTF-8"),
        (b'{"title": "a \\ud800"}', "the text in 'title' is not UTF-8"),
        (b'{"title": ""}', "the text in 'title' is empty"),
        (b'{"title": null}', "the text in 'title' is empty"),
        (b'{"title": ["a", "b"]}', "must hold text, not list"),
        (b'{"other": "a"}', "has none of the fields"),
        (b'{"image": 7}', "must be bytes or a path, not int"),
    ],
)
def test_jsonl(tmp_path, line, why):
    good = [json.dumps({"title": f"title {index}", "n": index}).encode() for index in range(GOOD)]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join([*good[:3], b"", line, *good[3:]]))
    skips_one(tmp_path / "data.jsonl", named="data.jsonl line 5: ", why=why)


@pytest.mark.parametrize(
    ("image", "text", "why"),
    [
        *((data, b"a text", why) for data, why in BAD_PICTURES.values()),
        (None, b"a text", "has no image"),
        (png(), b"", "is empty"),
        (png(), None, "is empty"),
        (png(), b"caf\xe9", "not UTF-8"),
    ],
)
@pytest.mark.parametrize("struct", [False, True])
def test_parquet(tmp_path, image, text, why, struct):
    images = [*(png(index) for index in range(GOOD)), image]
    if struct:
        images = [{"bytes": data, "path": None} for data in images]
    texts = pa.array([*(f"text {index}".encode() for index in range(GOOD)), text], pa.binary()).view(
        pa.string()
    )
    pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "data.parquet", row_group_size=8)
    skips_one(tmp_path / "data.parquet", columns=IMAGE_AND_TEXT, named=f"data.parquet row {GOOD}: ", why=why)


def test_a_damaged_row_group_costs_its_rows_and_no_more(tmp_path):
    table = pa.table({"text": [f"some longer text {index}" for index in range(100)]})
    path = tmp_path / "data.parquet"
    pq.write_table(table, path, row_group_size=4, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(path).row_group(3).column(0)
    with path.open("r+b") as file:
        file.seek(column.data_page_offset)
        file.write(b"\xff" * column.total_compressed_size)
    source = open_source(DataConfig(path=str(path)), seed=0, epochs=1)
    assert len(list(source)) == 96
    assert source.bad.count == 4 and "data.parquet rows 12 to 15: cannot be read" in source.bad.first[0]


def test_huggingface():
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [{"bytes": png(index)[: 60 if index == 9 else None], "path": None} for index in range(GOOD + 1)]
    data = {"image": images, "text": ["a text"] * (GOOD + 1)}
    dataset = datasets.Dataset.from_dict(data, features=features)
    source = Source(HuggingFaceReader(dataset, Fields(IMAGE_AND_TEXT, 8), name="pets"), seed=0, epochs=1)
    assert len(list(source)) == GOOD
    assert source.bad.count == 1 and "pets row 9: truncated or damaged image" in source.bad.first[0]


def write_tar(path: Path, extra: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for index in range(GOOD):
            tar.addfile(*file(f"{index:03d}.png", png(index)))
            tar.addfile(*file(f"{index:03d}.txt", b"a text"))
        for member, data in extra:
            tar.addfile(member, io.BytesIO(data))


def file(name: str, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member, io.BytesIO(data)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("members", "why"),
    [
        *(([("bad.png", data), ("bad.txt", b"a text")], why) for data, why in BAD_PICTURES.values()),
        ([("bad.png", png()), ("bad.txt", b"")], "the text in 'caption_en' is empty"),
        ([("bad.png", png()), ("bad.txt", b"caf\xe9")], "the text in 'caption_en' is not UTF-8"),
        ([("bad.txt", b"a text"), ("bad.txt", b"another")], "appears twice"),
        ([("/bad.png", png())], "leads out of the archive"),
        ([("../bad.png", png())], "leads out of the archive"),
        ([("bad.png", link("bad.png", "/etc/hostname", tarfile.SYMTYPE))], "not followed"),
        ([("bad.png", link("bad.png", "000.png", tarfile.LNKTYPE))], "not followed"),
        ([("bad.png", link("bad.png", "", tarfile.FIFOTYPE))], "not followed"),
        ([("bad.json", b"{")], "is not JSON"),
        ([("bad.json", b"[1]")], "must be a JSON object"),
        ([("bad.npy", b"\x93NUMPY")], "has none of the fields"),
        ([("bad.pkl", b"cos\nsystem\n(S'false'\ntR.")], "has none of the fields"),
    ],
)
def test_webdataset(tmp_path, members, why):
    extra = [
        (data, b"") if isinstance(data, tarfile.TarInfo) else (file(name, data)[0], data)
        for name, data in members
    ]
    write_tar(tmp_path / "shard.tar", extra)
    columns = {} if "none of" in why or "JSON" in why else {"image": "image", "caption_en": "caption_en"}
    skips_one(tmp_path / "shard.tar", named="bad", why=why, columns=columns)


def test_a_truncated_shard_loses_its_last_sample(tmp_path):
    path = tmp_path / "shard.tar"
    write_tar(path, [])
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-2]  # the last picture
    os.truncate(path, last.offset_data + 40)
    skips_one(path, named=f"sample {GOOD - 1:03d}", why="the tar file is truncated", good=GOOD - 1)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = tmp_path / "shard.tar"
    write_tar(path, [(file("bad.png", png())[0], png())])
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[-1].offset
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"garbage")
    skips_one(path, named=f"at byte {offset}", why="damaged")


def test_what_is_no_tar_file_is_one_bad_record(tmp_path):
    for index in range(21):
        write_tar(tmp_path / f"{index:02d}.tar", [])
    (tmp_path / "21.tar").write_bytes(b"x" * 5_000)
    skips_one(tmp_path, named="21.tar: ", why="is not a readable tar file", good=21 * GOOD)


FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[bytes]:
    path = tmp_path_factory.mktemp("shards") / "shard.tar"
    shards = []
    for form in FORMATS:
        write_tar(path, [(file("long/" * 24 + "name.txt", b"a text")[0], b"a text")], form)
        shards.append(path.read_bytes().rstrip(b"\0"))
    return shards


@settings(deadline=None, max_examples=60)
@given(
    form=st.integers(0, 2),
    bytes_=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=30),
    cut=st.floats(0, 1),
)
def test_a_damaged_shard_gives_records_or_bad_records(shards, tmp_path_factory, form, bytes_, cut):
    raw = bytearray(shards[form])
    for place, value in bytes_:
        raw[int(place * len(raw))] = value
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(raw[: int(len(raw) * cut)])
    block = WebDatasetReader([path], Fields({"caption_en": "txt"})).block(0)
    assert len(block) <= GOOD + 2
    for index in range(len(block)):
        try:
            assert block[index]["caption_en"]
        except BadRecord as error:
            assert "damaged.tar" in str(error)


def test_a_file_that_vanishes_while_training_is_a_bad_record(tmp_path):
    for index in range(GOOD):
        (tmp_path / f"{index}.png").write_bytes(png(index))
    (tmp_path / "data.csv").write_text("image\n" + "".join(f"{index}.png\n" for index in range(GOOD)))
    source = open_source(DataConfig(path=str(tmp_path / "data.csv")), seed=0)
    list(islice(source, GOOD))
    (tmp_path / "4.png").unlink()
    list(islice(source, GOOD))
    assert source.bad.count == 1 and "'4.png': no such file" in source.bad.first[0]


def test_paths_may_leave_the_data_folder_but_only_for_plain_pictures(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "secret.txt").write_text("password")
    rows = ["../a.png", str(tmp_path / "a.png"), "../secret.txt", "/dev/zero", "/proc/self/environ"]
    (tmp_path / "lists" / "data.csv").write_text("\n".join(["image", *rows]))
    config = DataConfig(path=str(tmp_path / "lists" / "data.csv"), shuffle=False, max_bad_fraction=1)
    source = open_source(config, seed=0, epochs=1)
    assert [record["image"].shape for record in source] == [(64, 64, 3)] * 2
    reasons = " ".join(source.bad.first)
    assert "'../secret.txt': not an image" in reasons and "'/dev/zero': not a regular file" in reasons
    assert "'/proc/self/environ': " in reasons and "password" not in reasons
