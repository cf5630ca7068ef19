"""A second run in one folder is refused; a folder is free again when its run ends, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openm6.train.config import RunConfig
from openm6.train.lock import only_run_in
from openm6.train.loop import train
from openm6.train.metrics import read_metrics
from tests import tiny


def test_a_second_run_in_one_folder_is_refused_and_leaves_the_first_alone(tmp_path: Path):
    """The first would lose its later metrics lines: the second opens the file anew."""
    config = RunConfig.model_validate(tiny.recipe(tmp_path / "data", steps=4))
    refused: list[str] = []

    def again(line: dict[str, object]) -> None:
        if line["step"] == 2 and not refused:
            with pytest.raises(
                ValueError, match=f"in use by another run \\(process {os.getpid()}\\)"
            ) as caught:
                train(config, tmp_path / "run")
            refused.append(str(caught.value))

    train(config, tmp_path / "run", on_progress=again)
    assert refused
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [2, 4]


def test_a_run_that_has_ended_or_failed_leaves_the_folder_free(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), only_run_in(tmp_path):
        raise ZeroDivisionError
    with only_run_in(tmp_path), pytest.raises(ValueError, match="in use"), only_run_in(tmp_path):
        pass
    with only_run_in(tmp_path):
        pass


def test_a_killed_run_leaves_the_folder_free(tmp_path: Path):
    code = (
        "import os, sys; from pathlib import Path; from openm6.train.lock import only_run_in\n"
        "with only_run_in(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    with only_run_in(tmp_path):
        pass
