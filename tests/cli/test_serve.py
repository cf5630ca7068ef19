"""openm6 serve: mistakes are refused before it starts."""

from __future__ import annotations

import socket
from pathlib import Path

from openm6.search import Index
from tests.cli.conftest import Cli
from tests.search.conftest import ColourEncoder, png


def test_mistakes_are_told_before_anything_is_loaded(cli: Cli, tmp_path: Path) -> None:
    assert "give it an --api-key" in cli.mistake("serve", "--host", "0.0.0.0")
    assert "api_key: String should have at least 8" in cli.mistake(
        "serve", "--api-key", "short", "--port", "0"
    )
    assert "api_key: a key has letters" in cli.mistake("serve", "--api-key", "schlüssel", "--port", "0")
    assert "--pictures goes with --index" in cli.mistake("serve", "--pictures", tmp_path)
    assert "--yuan goes with --index" in cli.mistake("serve", "--yuan")
    assert "there is no index at" in cli.mistake("serve", "--port", "0", "--index", tmp_path / "none")
    assert "root_path: a root path begins with /" in cli.mistake(
        "serve", "--root-path", "shop", "--port", "0"
    )
    assert "is not a size" in cli.mistake("serve", "--upload", "much")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "is in use" in cli.mistake("serve", "--port", str(other.getsockname()[1]))


def test_a_wrong_folder_of_pictures_is_noticed_at_the_start(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png((200, 0, 0)))
    (tmp_path / "items.csv").write_text("id,image\na,a.png\n")
    index, elsewhere = tmp_path / "index", tmp_path / "elsewhere"
    Index.open(str(index), encoder=ColourEncoder()).update(str(tmp_path / "items.csv"))
    elsewhere.mkdir()
    mistake = cli.mistake("serve", "--port", "0", "--index", index, "--pictures", elsewhere)
    assert "none of the pictures of the first 1 items can be read in" in mistake and "'a.png'" in mistake
