"""OpenM6: one transformer that captions, answers, draws, writes and matches, and a way to train giants.

    import openm6
    m6 = openm6.load()                      # the included model knows emoji; train it on photos for photos
    print(m6.caption("apple-emoji.png"))

    giant = openm6.giant.stream("Qwen3-4B", budget="6GiB", disk="/nvme")    # train a model larger than memory

Importing the package takes a few milliseconds. PyTorch is imported only when something needs it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from openm6 import giant
    from openm6.decode.pipeline import Pipeline

# PyTorch's OpenMP threads spin for milliseconds after every operation by default. The threads that read, write and
# hash beside a streamed step need those cores. 10,000 turns are about 0.1 ms, longer than the usual gap between two
# operations. It takes effect only if PyTorch is imported later.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.2.0"
__all__ = ["__version__", "giant", "load"]


def __getattr__(name: str) -> Any:
    if name == "giant":
        return importlib.import_module("openm6.giant")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(path: str | Path | None = None, *, device: str = "auto") -> Pipeline:
    """Open a checkpoint folder or a run folder and return the pipeline that answers from it.

    Without `path`, the small model that is shipped inside the package. `device`: where the model computes, as auto
    (the accelerator if there is one, or else the processor), cpu, cuda, cuda:1, mps or xpu. Raises `ValueError` if
    the folder is missing or holds no checkpoint, or this machine has no such device.
    """
    from openm6.decode.pipeline import Pipeline

    return Pipeline(path, device=device)
