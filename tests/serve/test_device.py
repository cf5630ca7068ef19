"""The service's models on another device: scripts as on the processor, and one name for all that computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openm6.cli import serve as verb
from openm6.decode import live
from openm6.model.checkpoint import save_model
from openm6.serve import catalogue, server
from openm6.serve import writer as module
from openm6.serve.engine import Engine
from openm6.serve.shop import Shop
from openm6.serve.writer import Product, QwenWriter, SlotWriter, Writer, open_writer, shipped_writer
from tests import tiny
from tests.other_device import THERE, stand_in
from tests.serve.test_writer import FACTS, folder

__all__ = ["folder"]  # a fixture: a Qwen3 of random weights


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("small")
    save_model(tiny.m6(layers=1), made)
    tiny.text_tokenizer().save(made / "tokenizer.json")
    return made


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 4)
    monkeypatch.setattr(live, "MAX_POEM", 4)


def test_both_writers_write_on_the_device(folder: Path, small: Path) -> None:
    products = [Product(FACTS, lang="zh"), Product(FACTS[:1], seed=2)]
    for path, kind in ((folder, QwenWriter), (small, SlotWriter)):
        expected = told(open_writer(path, device="cpu"), products)
        with stand_in():
            there = open_writer(path)
            assert isinstance(there, kind)
            model = there.model if isinstance(there, QwenWriter) else there.m6.model
            assert {each.device for each in model.parameters()} == {THERE}
            assert told(there, products) == expected


def told(writer: Writer, products: list[Product]) -> tuple[list[str], list[tuple[int, str]]]:
    """The scripts, and what was reported on the way."""
    reports = list[tuple[int, str]]()
    return writer.write(products, on_text=lambda i, text: reports.append((i, text))), reports


@pytest.mark.parametrize("name", ["bogus", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(name: str, folder: Path, small: Path, tmp_path: Path) -> None:
    for path in (folder, small):
        with pytest.raises(ValueError, match=f"'{name}'.*auto"):
            open_writer(path, device=name)
    with pytest.raises(ValueError, match=f"'{name}'.*auto"):
        Shop(str(tmp_path / "index"), device=name)
    with pytest.raises(ValueError, match=f"'{name}'.*auto"):
        catalogue.embedded_shop(device=name)
    if shipped_writer(device="cpu") is not None:
        with pytest.raises(ValueError, match=f"'{name}'.*auto"):
            shipped_writer(device=name)


@pytest.mark.parametrize("options", [{}, {"writer": "small"}, {"model": "small"}], ids=str)
def test_everything_that_serves_is_opened_on_the_named_device(
    options: dict[str, Any], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`openm6 serve --device cuda:1`, up to the moment when it would listen."""
    asked, served = list[str](), list[Engine]()

    def resolve(name: str) -> Any:
        asked.append(name)
        return torch.device("cpu")

    for each in ("openm6.decode.opened", "openm6.serve.writer", "openm6.model.device"):
        monkeypatch.setattr(f"{each}.resolve_device", resolve)
    monkeypatch.setattr("openm6.decode.folder.shipped_checkpoint", lambda: small)
    monkeypatch.setattr(catalogue, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(catalogue, "write_catalogue", lambda folder: folder / "catalogue.csv")
    monkeypatch.setattr(server, "run", lambda engine, *_, **__: served.append(engine))
    chosen: dict[str, Any] = {name: small if name == "writer" else str(small) for name in options}
    verb.serve(port=0, device="cuda:1", **chosen)
    [engine] = served
    engine.batcher.stop(5)
    assert set(asked) == {"cuda:1"} and len(asked) >= 1 + ("writer" in options) + ("model" in options)
