"""Category prediction from an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openm6.data import read_image
from openm6.search import Index
from openm6.search.encoders import Encoder
from openm6.search.learned.category import neighbour_vote
from openm6.search.learned.encoder import LearnedEncoder
from openm6.search.learned.photo_net import PhotoNet, PhotoNetConfig
from openm6.search.prediction import predict_category
from tests.search.conftest import COLOURS, png


def shop(folder: Path, column: str = "category") -> str:
    folder.mkdir()
    lines = [f"id,image,{column}"]
    for number, (name, colour) in enumerate(COLOURS.items()):
        for i in range(4):
            (folder / f"{name}{i}.png").write_bytes(png(colour, seed=10 * number + i))
            lines.append(f"{name}-{i},{name}{i}.png,{name}")
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "items.csv")


def test_the_vote_stands_alone_where_there_is_no_softmax(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.open(str(tmp_path / "index"), encoder=encoder)
    index.update(shop(tmp_path / "shop"))
    found = predict_category(index, tmp_path / "shop" / "red2.png")
    assert next(iter(found)) == "red" and set(found) == set(COLOURS)
    assert sum(found.values()) == pytest.approx(1) and [*found.values()] == sorted(
        found.values(), reverse=True
    )


def test_a_trained_encoder_says_what_it_knows_and_items_vote_for_what_came_later(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    names = ["blue", "green", "red"]  # grey came later
    PhotoNet(PhotoNetConfig(image_size=64, dim=8, categories=names)).save(tmp_path / "net")
    encoder = LearnedEncoder(tmp_path / "net")
    index = Index.open(str(tmp_path / "index"), encoder=encoder)
    index.update(shop(tmp_path / "shop"))
    picture = read_image(tmp_path / "shop" / "grey1.png", size=64)
    found = predict_category(index, tmp_path / "shop" / "grey1.png")

    vectors, known = encoder.predict([picture])
    hits = index.nearest(vectors[0], None, 30)
    numbers = np.array([[*names, "grey"].index(str(hit.attributes["category"])) for hit in hits])
    [vote] = neighbour_vote(np.array([[hit.similarity for hit in hits]]), numbers, 4)
    assert 0 < vote[3] < 1
    wanted = dict(zip(names, known[0] * (1 - vote[3]), strict=True)) | {"grey": vote[3]}
    assert found == pytest.approx(wanted, abs=1e-6) and sum(found.values()) == pytest.approx(1)


def test_an_index_without_categories_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.open(str(tmp_path / "index"), encoder=encoder)
    with pytest.raises(ValueError, match="there is none at this address"):
        predict_category(index, tmp_path / "a.png")
    index.update(shop(tmp_path / "shop", column="kind"))
    with pytest.raises(ValueError, match="have no column 'category'"):
        predict_category(index, tmp_path / "shop" / "red1.png")


def test_items_without_a_category_have_no_vote(tmp_path: Path, encoder: Encoder) -> None:
    catalogue = Path(shop(tmp_path / "shop"))
    named, text = tmp_path / "shop" / "red1.png", catalogue.read_text()
    index = Index.open(str(tmp_path / "index"), encoder=encoder)
    catalogue.write_text(text.replace(",red\n", ",\n"))
    index.update(str(catalogue))
    assert set(predict_category(index, named)) == {"green", "blue", "grey"}
    lines = text.splitlines()
    catalogue.write_text("\n".join([lines[0], *(line.rsplit(",", 1)[0] + "," for line in lines[1:])]))
    index.update(str(catalogue))
    with pytest.raises(ValueError, match="an index of items with categories is needed: none has one"):
        predict_category(index, named)
