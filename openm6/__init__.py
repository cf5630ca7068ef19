"""OpenM6: one transformer that captions, answers, draws, writes and matches, trained Pseudo-to-Real.

    import openm6
    m6 = openm6.load()
    print(m6.caption("photo.png"))

Importing the package costs a few milliseconds; PyTorch is imported by the first call of `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from openm6.decode.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path | None = None) -> Pipeline:
    """Open a checkpoint folder or a run folder and return the pipeline that answers from it.

    Without `path`, the small model that is shipped inside the package. Raises `ValueError` if the folder is
    missing or holds no checkpoint.
    """
    from openm6.decode.pipeline import Pipeline

    return Pipeline(path)
