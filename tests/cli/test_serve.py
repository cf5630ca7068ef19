"""openm6 serve: what it refuses before it starts."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.cli.conftest import Cli


def test_mistakes_are_told_before_anything_is_loaded(cli: Cli, tmp_path: Path) -> None:
    assert "give it an --api-key" in cli.mistake("serve", "--host", "0.0.0.0")
    assert "api_key: String should have at least 8" in cli.mistake(
        "serve", "--api-key", "short", "--port", "0"
    )
    assert "api_key: a key has letters" in cli.mistake("serve", "--api-key", "schlüssel", "--port", "0")
    assert "--pictures goes with --index" in cli.mistake("serve", "--pictures", tmp_path)
    assert "--yuan goes with --index" in cli.mistake("serve", "--yuan")
    assert "there is no index at" in cli.mistake("serve", "--port", "0", "--index", tmp_path / "none")
    assert "is not a size" in cli.mistake("serve", "--upload", "much")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "is in use" in cli.mistake("serve", "--port", str(other.getsockname()[1]))
