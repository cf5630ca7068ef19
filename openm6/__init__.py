"""OpenM6: one transformer that captions, answers, draws, writes and matches, trained Pseudo-to-Real.

    import openm6
    m6 = openm6.load()
    print(m6.caption("photo.png"))

Importing the package costs a few milliseconds; PyTorch is imported by the first call of `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from openm6.decode.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | PathLike[str] | None = None) -> Pipeline:
    """Open a checkpoint folder and return the pipeline that answers from it.

    `path` is a checkpoint folder (config.json, model.safetensors, tokenizer.json and the image tokenizer's
    two files); without it, the small model that is shipped inside the package. Raises `ValueError` if the
    folder is missing or is not such a checkpoint.
    """
    from openm6.decode.pipeline import load as load_pipeline

    return load_pipeline(path)
