"""From configs to sources: kinds told apart, columns mapped, splits found, and clear words on failure."""

import io
import json
import logging
import re
import tarfile
from itertools import islice
from pathlib import Path

import datasets
import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from openm6.data import DataConfig, open_mixture, open_reader, open_source
from openm6.data.corpus import decode_image, load_emoji
from openm6.data.embedded import EmojiCorpus, PoemCorpus
from openm6.data.files import detect_kind


def png(red: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 6), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


def records(path: Path | str, **config) -> list[dict]:
    return list(open_source(DataConfig(path=str(path), shuffle=False, **config), seed=0, epochs=1))


@pytest.fixture
def pets(tmp_path) -> Path:
    for index, name in enumerate(["cat/1.png", "cat/sub/2.JPG", "small_dog/3.png", "4.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(index))
    for name in [".hidden/5.png", "cat/.6.png", "cat/notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_names_its_classes(pets):
    found = records(pets)
    assert [record["id"] for record in found] == ["4.png", "cat/1.png", "cat/sub/2.JPG", "small_dog/3.png"]
    assert [record.get("label") for record in found] == [None, "cat", "cat", "small_dog"]
    assert found[3]["caption_en"] == "small dog"
    assert [int(record["image"][0, 0, 0]) for record in found] == [3, 0, 1, 2]
    assert all(record["image"].shape == (64, 64, 3) for record in found)
    assert [record["id"] for record in records(pets, split="cat")] == ["1.png", "sub/2.JPG"]


def test_columns_choose_and_rename(pets):
    found = records(pets / "cat", columns={"image": "image"}, image_size=None)
    assert [set(record) for record in found] == [{"image", "id"}, {"image", "id"}]
    assert found[0]["image"].shape == (6, 6, 3)
    lines = [{"picture": "1.png", "zh": "猫", "n": 3, "stars": [1, 2], "title": "not chosen"}]
    (pets / "cat" / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    [record] = records(
        pets / "cat",
        columns={"image": "picture", "caption_zh": "zh", "answer": "n", "stars": "stars"},
        kind="jsonl",
    )
    assert record.pop("image").shape == (64, 64, 3)
    assert record == {"id": "a.jsonl line 1", "caption_zh": "猫", "answer": "3", "stars": [1, 2]}


def test_csv_details(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(
        '\ufeff"title",text,author,extra\r\n"a ""b"", c",x\u2028y,,z\r\n\r\nt,  t  ,李白,\r\n'.encode()
    )
    assert records(path) == [
        {"id": "data.csv line 2", "title": 'a "b", c', "text": "x\u2028y"},
        {"id": "data.csv line 4", "title": "t", "text": "t", "author": "李白"},
    ]
    (tmp_path / "data.tsv").write_text("title\ttext\na,b\tc\n")
    assert records(tmp_path / "data.tsv") == [{"id": "data.tsv line 2", "title": "a,b", "text": "c"}]


def test_parquet_reads_paths_and_only_the_columns_it_needs(tmp_path):
    (tmp_path / "1.png").write_bytes(png(9))
    images = [{"bytes": None, "path": "1.png"}, {"bytes": png(7), "path": "elsewhere.png"}]
    pq.write_table(
        pa.table({"image": images, "title": ["a", "b"], "unused": ["x", "y"]}), tmp_path / "a.parquet"
    )
    found = records(tmp_path / "a.parquet")
    assert [(record["title"], int(record["image"][0, 0, 0])) for record in found] == [("a", 9), ("b", 7)]
    assert [set(record) for record in found] == [{"id", "title", "caption_en", "image"}] * 2


def test_webdataset_columns(tmp_path):
    with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
        members = {"x/1.PNG": png(5), "x/1.txt": b"a cat", "x/1.cls": b"7", "x/1.seg.png": b"mask"}
        members["x/1.json"] = json.dumps({"zh": "猫", "png": "not this"}).encode()
        members["._1.png"] = b"left by another system"
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    [record] = records(tmp_path)
    assert record.pop("image")[0, 0, 0] == 5
    assert record == {"id": "x/1", "caption_en": "a cat", "label": "7"}
    columns = {"image": "png", "caption_zh": "zh", "mask": "seg.png"}
    [record] = records(tmp_path / "a-*.tar", columns=columns)
    assert record.pop("image")[0, 0, 0] == 5
    assert record == {"id": "a-0.tar sample x/1", "caption_zh": "猫", "mask": b"mask"}


@pytest.fixture
def animals(monkeypatch, tmp_path) -> datasets.Dataset:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "title": datasets.Value("string"),
        }
    )
    images = [{"bytes": png(index), "path": None} for index in range(4)]
    data = {"image": images, "label": [0, 1, 1, 0], "title": ["a", "b", "c", "d"]}
    return datasets.Dataset.from_dict(data, features=features)


def test_huggingface_from_disk(animals, tmp_path):
    animals.save_to_disk(tmp_path / "one")
    found = records(tmp_path / "one")
    assert [record["label"] for record in found] == ["cat", "dog", "dog", "cat"]
    assert [record["title"] for record in found] == ["a", "b", "c", "d"]
    assert [int(record["image"][0, 0, 0]) for record in found] == [0, 1, 2, 3]
    datasets.DatasetDict({"train": animals, "test": animals.select([2])}).save_to_disk(tmp_path / "two")
    assert len(records(tmp_path / "two")) == 4
    assert [record["title"] for record in records(tmp_path / "two", split="test")] == ["c"]
    with pytest.raises(ValueError, match="splits are"):
        records(tmp_path / "two", split="val")
    with pytest.raises(ValueError, match="without splits"):
        records(tmp_path / "one", split="train")
    states = [open_source(DataConfig(path=str(tmp_path / "one")), seed=0).state_dict() for _ in range(2)]
    assert states[0] == states[1]


def test_huggingface_by_name(animals, tmp_path):
    (tmp_path / "named").mkdir()
    animals.to_parquet(tmp_path / "named" / "train.parquet")
    found = records(tmp_path / "named", kind="huggingface", columns={"title": "title", "label": "label"})
    assert [(record["title"], record["label"]) for record in found][:2] == [("a", "cat"), ("b", "dog")]


def test_huggingface_streams_are_refused(animals):
    from openm6.data import Fields
    from openm6.data.huggingface import HuggingFaceReader

    with pytest.raises(ValueError, match="without streaming"):
        HuggingFaceReader(animals.to_iterable_dataset(), Fields())  # pyright: ignore[reportArgumentType]


def test_kinds_are_told_apart(pets, animals):
    assert detect_kind(str(pets)) == "folder"
    for name, kind in [("a.csv", "csv"), ("b.TSV", "csv"), ("c.ndjson", "jsonl"), ("d.tar", "webdataset")]:
        (pets / "other").mkdir(exist_ok=True)
        (pets / "other" / name).touch()
        assert detect_kind(str(pets / "other" / name)) == kind
    assert detect_kind(str(pets / "other" / "*.csv")) == "csv"
    with pytest.raises(ValueError, match="say which kind"):
        detect_kind(str(pets / "other"))
    (pets / "only" / "train").mkdir(parents=True)
    (pets / "only" / "train" / "a.jsonl").touch()
    assert detect_kind(str(pets / "only")) == "jsonl"
    (pets / "list.csv").touch()  # a table at the top counts before the pictures it lists
    assert detect_kind(str(pets)) == "csv"
    animals.save_to_disk(pets / "saved")
    assert detect_kind(str(pets / "saved")) == "huggingface"
    (pets / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot tell"):
        detect_kind(str(pets / "empty"))
    with pytest.raises(ValueError, match="no file or folder"):
        detect_kind(str(pets / "missing"))


def test_splits_of_files(tmp_path):
    for name in ["train.jsonl", "train-2.jsonl", "trainer.jsonl", "val.jsonl", "deep/x.jsonl"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"title": name}))
    titles = {
        split: [record["title"] for record in records(tmp_path, split=split)]
        for split in ("train", "val", "deep")
    }
    assert titles == {
        "train": ["train-2.jsonl", "train.jsonl"],
        "val": ["val.jsonl"],
        "deep": ["deep/x.jsonl"],
    }
    assert len(records(tmp_path)) == 4
    with pytest.raises(ValueError, match="files of the split 'test'"):
        records(tmp_path, split="test")
    with pytest.raises(ValueError, match="is not one"):
        records(tmp_path / "val.jsonl", split="val")


def test_wrong_columns_are_named_when_the_data_is_opened(tmp_path):
    (tmp_path / "a.csv").write_text("pikture,titel\na.png,b\n")
    with pytest.raises(ValueError, match=r"map them to its columns \['pikture', 'titel'\]"):
        records(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="did you mean 'titel'"):
        records(tmp_path / "a.csv", columns={"title": "title"})
    for header in (b"", b"a,a\n", b"\xff\xfe\n"):
        (tmp_path / "b.csv").write_bytes(header)
        with pytest.raises(ValueError, match="header"):
            records(tmp_path / "b.csv")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="cannot be read as a Parquet file"):
        records(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("title\n")
    with pytest.raises(ValueError, match="no records"):
        records(tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"pth": "a"}, "pth"),
        ({}, "needs a path"),
        ({"kind": "corpus-emoji", "path": "a"}, "embedded"),
        ({"path": "a", "weight": 0}, "weight"),
        ({"path": "a", "max_bad_fraction": 2}, "max_bad_fraction"),
        ({"path": "a", "kind": "excel"}, "kind"),
    ],
)
def test_configs_are_checked(config, names):
    with pytest.raises(ValidationError, match=names):
        DataConfig(**config)


def test_embedded_emoji():
    corpus = open_reader(DataConfig(kind="corpus-emoji", split="concept_val"))
    assert isinstance(corpus, EmojiCorpus)
    table = load_emoji("concept_val")
    assert corpus.images.shape == (len(corpus), 64, 64, 4) == (table.num_rows, 64, 64, 4)
    record = corpus[5]
    assert np.array_equal(record["image"], decode_image(table["image"][5].as_py()))
    assert record["caption_en"] == record["name_en"] == table["name_en"][5].as_py()
    assert record["keywords_zh"] == table["keywords_zh"][5].as_py()
    assert np.shares_memory(record["image"], corpus.images) and not record["image"].flags.writeable
    assert open_reader(DataConfig(kind="corpus-emoji", split="concept_val", weight=2)) is corpus
    assert EmojiCorpus("concept_val", image_size=16).images.shape[1:] == (16, 16, 4)
    with pytest.raises(ValueError, match="split"):
        EmojiCorpus("test")


def test_embedded_poems():
    corpus = open_reader(DataConfig(kind="corpus-poems", split="val"))
    assert isinstance(corpus, PoemCorpus)
    assert {"title", "author", "form", "text"} <= corpus[0].keys()
    train = open_reader(DataConfig(kind="corpus-poems"))
    assert isinstance(train, PoemCorpus)
    assert len(train) + len(corpus) == len(PoemCorpus(None))


def test_mixtures_follow_their_weights_and_resume(pets, caplog):
    caplog.set_level(logging.WARNING)
    configs = [
        DataConfig(path=str(pets), weight=3, image_size=8),
        DataConfig(kind="corpus-poems", split="val", weight=1),
    ]
    unbroken = open_mixture(configs, seed=4)
    ids = [record["id"] for record in islice(unbroken, 40)]
    assert unbroken.counts == [30, 10]
    first, second = open_mixture(configs, seed=4), open_mixture(configs, seed=4)
    list(islice(first, 17))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [record["id"] for record in islice(second, 23)] == ids[17:]
    assert caplog.records == []
    with pytest.raises(ValueError, match="one weight a source"):
        open_mixture([], seed=0)


def test_the_guide_is_true(pets, animals, monkeypatch):
    """Every YAML block of the guide is a valid mix, and its Python runs as it stands."""
    guide = (Path(__file__).parents[2] / "docs" / "bring-your-own-data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", guide, re.S)
    entries = [entry["data"] for block in blocks for entry in yaml.safe_load(block)["mix"]]
    sources = [source for data in entries for source in (data if isinstance(data, list) else [data])]
    assert len([DataConfig(**source) for source in sources]) == 5
    (pets / "photos").mkdir()
    (pets / "photos" / "products.csv").write_text("file,title\n../cat/1.png,a cat\n")
    monkeypatch.chdir(pets)
    names: dict = {"dataset": animals.rename_columns({"image": "img", "title": "text"})}
    for block in re.findall(r"```python\n(.*?)```", guide, re.S):
        exec(block, names)
    assert names["record"]["caption_en"] == "a cat" and names["record"]["image"].shape == (64, 64, 3)
    assert next(names["source"])["text"].count("squared") == 1
    counts = [next(names["mixed"]).get("caption_en") == "a cat" for _ in range(8)]
    assert counts.count(True) == 6


def test_sets_choose_among_the_icon_sets():
    [both, one] = [
        open_reader(DataConfig(kind="corpus-emoji", split="val", sets=sets))
        for sets in (["noto", "twemoji"], ["twemoji"])
    ]
    assert isinstance(both, EmojiCorpus) and isinstance(one, EmojiCorpus)
    assert {row["set"] for row in both.rows} == {"noto", "twemoji"}
    assert one.rows == [row for row in both.rows if row["set"] == "twemoji"]
    assert len(one.images) == len(one) > 0 and one.fingerprint != both.fingerprint
    with pytest.raises(ValueError, match="no set 'tweemoji'; its sets are emojione, "):
        open_reader(DataConfig(kind="corpus-emoji", sets=["tweemoji"]))
    with pytest.raises(ValidationError, match="sets chooses among the icon sets of corpus-emoji"):
        DataConfig(kind="folder", path="pets", sets=["noto"])
